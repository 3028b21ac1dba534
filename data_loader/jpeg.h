// JPEG by libjpeg-turbo: baseline, progressive, grey, CMYK and YCCK, decoded to RGB8.
#pragma once

#include <memory>

#include "data_loader/image.h"

namespace convoy::data {

// Every warning of libjpeg that means damaged data is an error here.
std::unique_ptr<ImageCodec> make_jpeg_codec();

}  // namespace convoy::data
