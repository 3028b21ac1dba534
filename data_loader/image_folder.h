// Images as files in one folder per class: train/<class>/* and val/<class>/*, or <class>/* alone,
// which then serves both splits.
//
// Classes and files are sorted bytewise. Files called *.jpg, *.jpeg or *.png (any case) are images;
// what an image really is is decided by its content when it is decoded. Hidden names, other files,
// folders in class folders, and whatever is not a regular file are skipped and counted. Links are
// followed, so a class or an image may be a link.
#pragma once

#include <memory>
#include <string>

#include "data_loader/dataset.h"

namespace convoy::data {

bool is_image_folder(const std::string& path);

// The list of files is kept in spec.cache_folder and used again while no folder's time of
// modification has changed; read() checks each file's size against it.
std::unique_ptr<Dataset> open_image_folder(const DatasetSpec& spec, Split split);

}  // namespace convoy::data
