// What the markers of a JPEG file say, read without decoding: its kind, and which way is up.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace convoy::data {

struct JpegFacts {
  // n of the frame's marker SOFn (ITU-T T.81, table B.1): 0 baseline, 1 extended, 2 progressive, 3
  // lossless, 5 to 7 hierarchical, 9 and above arithmetic coding; -1: no frame.
  int process = -1;
  int precision = 0;  // bits of a value
  int width = 0, height = 0;
  int components = 0;            // 1 grey, 3 colour, 4 CMYK or YCCK
  bool has_half_chroma = false;  // chroma is stored at less than luma's resolution
  // EXIF's tag 0x112: 1 upright ... 8; 1 also where there is none, or one that makes no sense.
  int orientation = 1;
};

// Reads the markers up to the first scan. Never throws: what is not there or cut off keeps the
// values above, and so does everything in a file that is no JPEG.
JpegFacts jpeg_facts(std::span<const uint8_t> file);

// The tag in the TIFF structure of an EXIF block (what follows "Exif\0\0"), of either byte order; 1
// where it is not there, damaged, or outside 1 ... 8. TIFF 6.0, section 2; Exif 2.32, 4.6.4 A.
int exif_orientation(std::span<const uint8_t> tiff);

// Why no decoder here reads such a file ("arithmetic coding"); empty where that is not so.
std::string unsupported(const JpegFacts& facts);

}  // namespace convoy::data
