// PNG by libpng, decoded to RGB8 as Pillow's convert("RGB") does: palette, grey and 1, 2, 4 and 16
// bits are expanded or cut to 8 bits, transparency is dropped.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data_loader/image.h"

namespace convoy::data {

std::unique_ptr<ImageCodec> make_png_codec();

// RGB8 pixels [height, width, 3] as a file.
std::string encode_png(const std::vector<uint8_t>& pixels, int width, int height);

}  // namespace convoy::data
