// Image files by their names, as a dataset without labels.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data_loader/dataset.h"

namespace convoy::data {

// Encoded images; label() is 0 of each. Nothing is looked at before it is read: what cannot be read
// then is kIo or kBadData.
std::unique_ptr<Dataset> make_file_list(std::vector<std::string> paths);

// `path` itself, or where it is a folder the images in it and below it (*.jpg, *.jpeg, *.png, any
// case), sorted bytewise. Hidden names are skipped, links to folders are not followed. Throws
// Error: kBadData where the folder has no images, kIo where a folder cannot be listed.
std::vector<std::string> image_files(const std::string& path);

}  // namespace convoy::data
