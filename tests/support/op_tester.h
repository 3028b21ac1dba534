// Runs one operator on a device and holds it against the reference: guard zones around every
// buffer, outputs that start as NaN, inputs that must not change, one place for the tolerances.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "ops/core/error.h"
#include "ops/core/random.h"
#include "ops/device.h"
#include "ops/image_input.h"
#include "ops/pass_plan.h"
#include "tests/support/reference_ops.h"

namespace convoy::ops {

// Every device that is there. (device_test.cpp says which are missing.)
std::vector<std::string> device_names();
// As make_device(); what a GPU's library compiles at run time is compiled once by a program, since
// that takes most of the time of a test.
std::unique_ptr<Device> make_test_device(const std::string& name, int threads);

// An image as it lies in memory with kFourChannels.
std::vector<float> in_four_channels(const Shape& shape, const std::vector<float>& image);

// A tensor that is stored compact, as a whole.
std::vector<float> spread(const std::vector<float>& stored, const Shape& whole, int64_t stride);

// A device and the type of the activations: what every OpTest runs on.
struct Target {
  std::string device;
  DType type;
};
// device_names() in fp32 and bf16, a GPU in fp16 too.
std::vector<Target> targets();
void PrintTo(const Target& target, std::ostream* out);
std::string target_name(const ::testing::TestParamInfo<Target>& info);

// The test bodies of all ops: TEST_P(OpTest, ...) runs on each of targets(). Skips bf16 where the
// device does not support it. TEST_P(Fp32Test, ...) runs on each device in fp32.
class OpTest : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override;
  DType type() const { return GetParam().type; }
  // A device with its own number of threads; one at a time, as a thread has one OpenMP setting.
  Device& device(int threads = 2);

 private:
  std::unique_ptr<Device> device_;
};
class Fp32Test : public OpTest {};

// How inputs are drawn.
enum class Draw {
  kUniform,  // -1..1, plus OpCase::mean
  kSpaced,   // a random order of the numbers (i + 1/2) / 10: none near zero or near another
};

struct OpCase {
  OpSpec spec;
  std::vector<Shape> x;
  bool training = true;
  int dy_sources = 1;
  std::vector<bool> wants_dx = {};  // empty: all
  bool wants_gradients = true;      // of the parameters
  bool fp32_output = false;         // y stays fp32 whatever the type
  bool tf32 = false;
  Draw draw = Draw::kUniform;
  float mean = 0;
  std::string node = "node";
  StepInfo step = {};
  int64_t slices = 1;            // of the batch
  std::vector<bool> given = {};  // whether the sums of an input are (NodeMemory::sums); empty: none
  bool image = false;  // x[0] is the image, which lies in memory as the device would have it
};
std::string describe(const OpCase& c);

// The numbers of one case, fp32; activations are already rounded to the type, parameters are not.
struct OpData {
  std::vector<std::vector<float>> x, dy, parameters;
  std::vector<float> running;
};
OpData make_data(const OpCase& c, DType type, uint64_t seed = 1);

struct OpResult {
  std::vector<float> y;
  std::vector<std::vector<float>> dx;  // empty where none was wanted
  std::vector<std::vector<float>> gradients;
  std::vector<float> statistics;
  bool operator==(const OpResult&) const = default;  // false where there is a NaN
};
// prepare() (twice), then forward and in training backward, as a network would call them, slice by
// slice: the gradient that is written in place lies where dy[0] was. Expects that nothing outside
// the buffers and none of the inputs was written.
OpResult run(Device& device, DType type, const OpCase& c, const OpData& data);

// What the reference makes of the same numbers (weights rounded to the type as the op does).
reference::Node run_reference(const OpCase& c, DType type, const OpData& data, const OpResult& op);

// One output against the reference: L2 norm of the error relative to the reference's, and the
// largest error relative to the reference's largest element. `type` is the output's, `roundings`
// how often a value was rounded to it on its way.
void expect_close(const std::string& what, const std::vector<float>& out,
                  const std::vector<double>& reference, DType type, int roundings = 1);

// All outputs of one case on a device against the reference, the batch whole and sample by sample.
void check_op(Device& device, DType type, const OpCase& c);
// The batch in the case's slices alone.
void check_as_it_is(Device& device, DType type, const OpCase& c);

// Backward against differences of forward, for inputs and parameters: of the reference element by
// element, of the device along random directions, in fp32.
void check_gradients(Device& device, const OpCase& c);

// The same bits with 1, 2, 3 and 4 threads.
void check_threads(const std::string& device, DType type, const OpCase& c);

// body() throws Error with this code, and its message has every one of these parts.
template <typename Body>
void expect_error(ExitCode code, const std::vector<std::string>& parts, Body body) {
  try {
    body();
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    for (const std::string& part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "no \"" << part << "\" in: " << e.what();
  }
}

// Values in an element type on a device, and back. The bytes behind `values` are 0xff: NaN.
DeviceMemory upload(Device& device, const std::vector<float>& values, DType type,
                    size_t behind = 0);
std::vector<float> download(Device& device, const DeviceMemory& memory, DType type);
// The bytes of values in an element type, and back.
std::vector<unsigned char> encode(const std::vector<float>& values, DType type);
std::vector<float> decode(const std::vector<unsigned char>& bytes, DType type);
float round_to(DType type, float v);

// Uniform in -1..1, number i of stream `stream`.
float random_value(uint64_t seed, uint64_t stream, uint64_t i);

// Bits as they are, for EXPECT_EQ of vectors that may hold NaN.
std::vector<uint32_t> bits_of(const std::vector<float>& v);

}  // namespace convoy::ops
