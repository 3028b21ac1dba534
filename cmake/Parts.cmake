# With CONVOY_PARTS: the files of ops/ and trainer/ that parse and write files, under the names of the
# whole libraries, so that tests/ links them as ever. What they need of these folders, and no more: none
# of it computes a network, so neither oneDNN nor OpenMP is asked for.
convoy_library(ops
  SOURCES
    ops/add.cpp ops/batch_norm.cpp ops/catalogue.cpp ops/concat.cpp ops/conv2d.cpp ops/dropout.cpp
    ops/graph.cpp ops/linear.cpp ops/local_response_norm.cpp ops/multiply.cpp ops/pool.cpp ops/relu.cpp
    ops/sigmoid.cpp ops/subsample.cpp
  LINK convoy::core)
convoy_library(trainer
  SOURCES
    trainer/checkpoint.cpp trainer/checkpoint_writer.cpp trainer/file.cpp trainer/file_calls.cpp
    trainer/graph_text.cpp trainer/job.cpp trainer/job_mistakes.cpp trainer/job_text.cpp
    trainer/ledger.cpp trainer/ledger_proof.cpp trainer/line_log.cpp trainer/lives.cpp trainer/metrics.cpp
    trainer/models/alexnet.cpp trainer/models/densenet.cpp trainer/models/googlenet.cpp
    trainer/models/highway.cpp trainer/models/models.cpp trainer/models/nin.cpp
    trainer/models/preact_resnet.cpp trainer/models/resnet.cpp trainer/models/vgg.cpp
    trainer/output_lock.cpp trainer/pack.cpp trainer/safetensors.cpp trainer/text.cpp
  LINK convoy::core convoy::ops convoy::data_loader Threads::Threads
  PRIVATE_LINK convoy::proto nlohmann_json::nlohmann_json)
target_compile_definitions(convoy_trainer PUBLIC CONVOY_VERSION="${PROJECT_VERSION}")
