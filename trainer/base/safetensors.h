// Files of named tensors in the safetensors format (https://github.com/huggingface/safetensors):
// 8 bytes with the header's length, little-endian; a JSON header; the tensors' bytes, row-major and
// little-endian, without gaps. Nothing in it can be run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace convoy::trainer {

enum class StoredType : uint8_t { kF32, kBf16, kF16, kI64, kI32, kU8 };

size_t size_of(StoredType type);
const char* name_of(StoredType type);                       // the format's word: "F32", "BF16", ...
std::string shape_text(const std::vector<int64_t>& shape);  // "[64, 3, 7, 7]"

// A tensor in a file. Its bytes belong to someone else and need not be aligned in memory.
struct NamedTensor {
  std::string name;
  StoredType type = StoredType::kF32;
  std::vector<int64_t> shape;  // empty: a scalar
  std::span<const std::byte> bytes;
};

// Tensors by name, in a fixed order. `storage` owns their bytes when they were read or copied, and
// is empty when they are borrowed. Move only.
struct TensorList {
  std::vector<NamedTensor> tensors;
  std::unique_ptr<std::byte[]> storage;

  // nullptr when there is none of this name. Linear search.
  const NamedTensor* find(std::string_view name) const;
};

// The same tensors with a storage of their own.
TensorList copy_of(const TensorList& list);

using Metadata = std::vector<std::pair<std::string, std::string>>;

// A file as it is on the disk, to be recorded and compared.
struct FileRecord {
  uint64_t bytes = 0;
  std::string sha256;
};

// Writes a file anew, from the tensors' own memory, and syncs it. Tensors stand in the order given;
// the same input gives the same bytes. No temporary name: trainer/checkpoints/checkpoint.h does
// that. Throws Error: kFault when a name is empty, doubled or not UTF-8 or when shape and bytes
// differ, kIo when the system refuses.
FileRecord write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                             const Metadata& metadata = {});

// Reads a whole file; tensors come in the order of their bytes. Everything is checked before memory
// is taken for it: lengths (a header has at most 100 MB), names, types, and that the tensors cover
// the file exactly, without gap or overlap. Throws Error: kBadData naming file and tensor, kIo when
// the system refuses. `metadata` and `record`, if given, receive the file's.
TensorList read_safetensors(const std::string& path, Metadata* metadata = nullptr,
                            FileRecord* record = nullptr);

}  // namespace convoy::trainer
