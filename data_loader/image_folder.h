// Images as files in one folder per class: train/<class>/* and val/<class>/*, or <class>/* alone,
// which then serves both splits.
//
// Classes and files are sorted bytewise. Files called *.jpg, *.jpeg or *.png (any case) are images;
// what an image really is is decided by its content when it is decoded. Hidden names, other files,
// folders in class folders, and whatever is not a regular file are skipped and counted. A class, an
// image, or the dataset's folder itself may be a link; one that leads from the dataset's folder to
// somewhere else needs DatasetSpec::follow_links.
#pragma once

#include <memory>
#include <string>

#include "data_loader/dataset.h"

namespace convoy::data {

bool is_image_folder(const std::string& path);

// What in the folder says that it is one: a few of its classes are looked into.
struct FolderEvidence {
  bool any = false;      // one at least holds files that are called like images
  bool certain = false;  // most of them do
  std::string text;
};
FolderEvidence image_folder_evidence(const std::string& path);

// The list of files is kept in spec.cache_folder and used again while no folder's time of
// modification has changed; read() checks each file's size against it.
std::unique_ptr<Dataset> open_image_folder(const DatasetSpec& spec, Split split);

}  // namespace convoy::data
