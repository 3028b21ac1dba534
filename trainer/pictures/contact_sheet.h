// Images side by side with lines of text under each, as one RGB8 picture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::trainer {

struct ContactSheet {
  int width = 0, height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]
  // Where image i's pixels lie: (x, y) of its upper left corner, each pixel `scale` x `scale`.
  std::vector<std::pair<int, int>> places;
  int scale = 1;
};

struct SheetImage {
  const uint8_t* pixels = nullptr;  // [shape.height, shape.width, shape.channels], borrowed
  std::vector<std::string> lines;   // what does not fit is cut; what is not ASCII becomes '?'
};

// `shape` is that of all images: 1 channel (grey) or 3. Small images are magnified by a whole
// number, so that every pixel stays what it is. `title` stands above all.
ContactSheet make_contact_sheet(const std::string& title, const data::ImageShape& shape,
                                const std::vector<SheetImage>& images);

}  // namespace convoy::trainer
