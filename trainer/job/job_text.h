// A job as text: the job file and --set, into a message of job.proto. What is wrong is added to the
// mistakes, and reading goes on.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "trainer/job/job_mistakes.h"

namespace google::protobuf {
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace convoy::trainer {

// `text`: protobuf's text format. `job` is an empty proto::Job.
void read_job_text(std::string_view text, google::protobuf::Message& job, Mistakes& mistakes);

// `set`: "key.of.field=value".
void apply_set(const std::string& set, google::protobuf::Message& job, Mistakes& mistakes);

// Calls visit("data.path", the message that has the field, the field) for all groups and fields
// below the message, in the order of job.proto.
using FieldVisitor =
    std::function<void(const std::string& key, const google::protobuf::Message& group,
                       const google::protobuf::FieldDescriptor* field)>;
void for_each_field(const google::protobuf::Message& message, const FieldVisitor& visit);

}  // namespace convoy::trainer
