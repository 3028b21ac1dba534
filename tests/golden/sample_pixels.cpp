// The pixels that training makes of images, for compare_with_pillow.py: for each file named on
// standard input five random-resized crops, each a line "left top width height flip" and then
// 224 * 224 * 3 bytes. With the argument --shrink the decoder may shrink images, as in training.
#include <cstdio>
#include <iostream>
#include <string>

#include "data_loader/files.h"
#include "data_loader/image.h"
#include "data_loader/transforms.h"

int main(int argc, char** argv) {
  using namespace convoy::data;
  const bool may_shrink = argc > 1 && std::string(argv[1]) == "--shrink";
  const ImageShape output{224, 224, 3};
  ImageDecoder decoder;
  Image image;
  ResizeScratch scratch;
  std::vector<uint8_t> bytes, pixels(output.bytes());
  std::string path;
  for (uint64_t sample = 0; std::getline(std::cin, path); ++sample)
    for (uint64_t epoch = 0; epoch < 5; ++epoch) {
      read_file(path, bytes);
      ImageShape shape;
      ImageCodec& codec = decoder.open(bytes, path, 178956970, shape);
      const Geometry whole = train_geometry({}, shape, output, 1, epoch, sample, path);
      const int denominator = may_shrink ? shrink_denominator(whole) : 1;
      const Geometry used = denominator > 1 ? shrink(whole, denominator) : whole;
      codec.decode(source_region(used), denominator, image);
      apply(pixels.data(), used, image.view(), scratch);
      std::printf("%d %d %d %d %d\n", whole.x.low, whole.y.low, whole.x.high - whole.x.low,
                  whole.y.high - whole.y.low, whole.flip ? 1 : 0);
      std::fwrite(pixels.data(), 1, pixels.size(), stdout);
      std::fflush(stdout);
    }
}
