// The version that --version prints and ranks compare at the start.
#pragma once

namespace convoy::trainer {

inline constexpr const char* kVersion = CONVOY_VERSION;

}  // namespace convoy::trainer
