// JPEG of all kinds (baseline, progressive, grey, CMYK, YCCK), decoded to RGB8: by our own decoder
// (data_loader/baseline_jpeg.h) where it knows the file, else by libjpeg-turbo. The pixels are the
// same, and whether a file is damaged is libjpeg's to say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "data_loader/image.h"

namespace convoy::data {

// Every warning of libjpeg that means damaged data is an error here.
std::unique_ptr<ImageCodec> make_jpeg_codec(Reading reading = Reading::kRegion);
// libjpeg-turbo alone, as a reference.
std::unique_ptr<ImageCodec> make_libjpeg_codec(Reading reading = Reading::kRegion);

// A scan of one pass over the image, from its first entropy-coded byte to the end of the file, is
// plainly whole if the first marker in it that is no restart marker is EOI, with no more than
// kMaxTrailingBytes after it. Then decoding may stop at the last row that is wanted; a file that is
// cut off is never plainly whole, whatever bytes it was cut between. Returns the length up to EOI,
// or 0.
constexpr size_t kMaxTrailingBytes = 512;
size_t plainly_whole_scan(std::span<const uint8_t> scan);

}  // namespace convoy::data
