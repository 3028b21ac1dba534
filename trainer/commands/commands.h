// The subcommands of `convoy`. Each takes the arguments behind its name and returns the exit code.
#pragma once

#include "trainer/job/command_line.h"

namespace convoy::trainer {

int train_command(const Arguments& arguments);
int eval_command(const Arguments& arguments);
int predict_command(const Arguments& arguments);
int verify_command(const Arguments& arguments);
int pack_command(const Arguments& arguments);
int import_command(const Arguments& arguments);
int export_command(const Arguments& arguments);
int report_command(const Arguments& arguments);
int model_command(const Arguments& arguments);
int model_list(const Arguments& arguments);  // convoy model list
int data_command(const Arguments& arguments);
int bench_command(const Arguments& arguments);
int bench_allreduce(const Arguments& arguments);  // convoy bench allreduce
int bench_loader(const Arguments& arguments);     // convoy bench loader

}  // namespace convoy::trainer
