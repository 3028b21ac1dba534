# With CONVOY_PARTS: the files of ops/ and trainer/ that parse and write files, under the names of the
# whole libraries, so that tests/ links them as ever. What they need of these folders, and no more: none
# of it computes a network, so neither oneDNN nor OpenMP is asked for.
convoy_library(ops
  SOURCES
    ops/add.cpp ops/batch_norm.cpp ops/catalogue.cpp ops/concat.cpp ops/conv2d.cpp ops/decisions.cpp
    ops/dropout.cpp ops/graph.cpp ops/linear.cpp ops/local_response_norm.cpp ops/multiply.cpp
    ops/pool.cpp ops/relu.cpp ops/sigmoid.cpp ops/subsample.cpp
  LINK convoy::core)
convoy_library(trainer
  SOURCES
    trainer/base/file.cpp trainer/base/file_calls.cpp trainer/base/line_log.cpp
    trainer/base/output_lock.cpp trainer/base/safetensors.cpp trainer/base/text.cpp
    trainer/models/alexnet.cpp trainer/models/densenet.cpp trainer/models/googlenet.cpp
    trainer/models/highway.cpp trainer/models/models.cpp trainer/models/nin.cpp
    trainer/models/preact_resnet.cpp trainer/models/resnet.cpp trainer/models/vgg.cpp
    trainer/job/graph_text.cpp trainer/job/job.cpp trainer/job/job_mistakes.cpp trainer/job/job_text.cpp
    trainer/checkpoints/checkpoint.cpp trainer/checkpoints/checkpoint_writer.cpp
    trainer/records/ledger.cpp trainer/records/ledger_proof.cpp trainer/records/lives.cpp
    trainer/records/metrics.cpp trainer/commands/pack_shards.cpp
  LINK convoy::core convoy::ops convoy::data_loader Threads::Threads
  PRIVATE_LINK convoy::proto nlohmann_json::nlohmann_json)
target_compile_definitions(convoy_trainer PUBLIC CONVOY_VERSION="${PROJECT_VERSION}")
