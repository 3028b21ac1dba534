// What a profiler does with NVTX, as small as it can be: a library that NVTX loads where
// NVTX_INJECTION64_PATH names it, and that appends a line for each border of a range to the file
// that CONVOY_NVTX_RECORD names: "THREAD + NAME" and "THREAD -".
#include <fcntl.h>
#include <fmt/format.h>
#include <nvtx3/nvToolsExt.h>
#include <unistd.h>

#include <cstdlib>

namespace {

void append(const std::string& line) {
  static const int file =
      ::open(std::getenv("CONVOY_NVTX_RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (::write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size())) std::abort();
}

nvtxDomainHandle_t create(const char* name) {
  static const char convoy = 0, other = 0;
  // Only an address: NVTX hands it back with each call.
  return reinterpret_cast<nvtxDomainHandle_t>(
      const_cast<char*>(std::string_view(name) == "Convoy" ? &convoy : &other));
}
int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  static const nvtxDomainHandle_t ours = create("Convoy");
  if (domain == ours) append(fmt::format("{} + {}\n", ::gettid(), event->message.ascii));
  return 0;
}
int pop(nvtxDomainHandle_t) {
  append(fmt::format("{} -\n", ::gettid()));
  return 0;
}

}  // namespace

extern "C" int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t tables);
extern "C" int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t tables) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(tables(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable functions = nullptr;
  unsigned size = 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &functions, &size))
    return 0;
  *functions[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(create);
  *functions[NVTX_CBID_CORE2_DomainRangePushEx] = reinterpret_cast<NvtxFunctionPointer>(push);
  *functions[NVTX_CBID_CORE2_DomainRangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}
