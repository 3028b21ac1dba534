# Everything Convoy uses from outside, with the least version it is tested with. All of it comes
# from Debian 12 (README, "Build"); nothing is downloaded.

find_package(Threads REQUIRED)
find_package(Protobuf 3.12 REQUIRED)
find_package(fmt 9 REQUIRED CONFIG)
find_package(nlohmann_json 3.11 REQUIRED CONFIG)
find_package(OpenSSL 1.1 REQUIRED COMPONENTS Crypto)  # SHA-256
find_package(ZLIB REQUIRED)
find_package(PNG 1.6 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(JPEG REQUIRED IMPORTED_TARGET "libjpeg>=2.1")  # libjpeg-turbo's libjpeg API
pkg_check_modules(DEFLATE REQUIRED IMPORTED_TARGET "libdeflate>=1.14")

find_package(MPI REQUIRED COMPONENTS CXX)          # Open MPI 4.1 or MPICH
if(CONVOY_TESTS)
  find_package(GTest 1.12 REQUIRED)
endif()

if(CONVOY_PARTS)
  return()
endif()

find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Boost 1.74 REQUIRED COMPONENTS program_options)

# oneDNN, found without its CMake package: Debian's asks for OpenCL headers that nobody needs here.
find_path(DNNL_INCLUDE_DIR dnnl.hpp REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(convoy::dnnl INTERFACE IMPORTED)
target_include_directories(convoy::dnnl SYSTEM INTERFACE "${DNNL_INCLUDE_DIR}")
target_link_libraries(convoy::dnnl INTERFACE "${DNNL_LIBRARY}")

if(CONVOY_TESTS AND CONVOY_CUDA)
  find_package(Boost 1.74 REQUIRED COMPONENTS program_options context)  # the emulated GPU's threads
endif()

if(CONVOY_CUDA)
  include(Cuda)
endif()
