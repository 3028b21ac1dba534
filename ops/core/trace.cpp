#include "ops/core/trace.h"

#ifdef CONVOY_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace convoy {

#ifdef CONVOY_CUDA

namespace {
nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("Convoy");
  return handle;
}
}  // namespace

TraceRange::TraceRange(const char* name) {
  nvtxEventAttributes_t event{};
  event.version = NVTX_VERSION;
  event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_ASCII;
  event.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &event);
}
TraceRange::~TraceRange() {
  nvtxDomainRangePop(domain());
}

#else

TraceRange::TraceRange(const char*) {}
TraceRange::~TraceRange() = default;

#endif

}  // namespace convoy
