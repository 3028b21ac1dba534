# What the CUDA path is built with: CUDA 13, cuDNN 9 and NCCL 2.28, from the toolkit's folders or from
# the wheels nvidia-cudnn-cu13 and nvidia-nccl-cu13 (-DCONVOY_NVIDIA_WHEELS=.../site-packages/nvidia).
set(CONVOY_NVIDIA_WHEELS "" CACHE PATH "Folder `nvidia` of a Python's site-packages with cuDNN and NCCL")
set(CMAKE_CUDA_ARCHITECTURES 90 CACHE STRING "GPU architectures; 90: H100, H200")

find_program(CONVOY_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  if(NOT CONVOY_NVCC)
    message(FATAL_ERROR "CONVOY_CUDA is ON, but there is no nvcc in PATH, CUDA_HOME or /usr/local/cuda: "
                        "install CUDA 13, or build the preset `release`, which needs no GPU")
  endif()
  set(CMAKE_CUDA_COMPILER "${CONVOY_NVCC}")
endif()
enable_language(CUDA)
find_package(CUDAToolkit 13.0 REQUIRED)

if(CONVOY_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${CONVOY_CCACHE}")
endif()

# CMake 3.25 does not hand C++20 to nvcc 13, and fmt 9 takes nvcc for one without constexpr. As on the
# host nothing is contracted to FMA, so that the emulated GPU computes what the real one does; our kernels
# wait for memory, not for arithmetic.
target_compile_options(convoy_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 -DFMT_USE_CONSTEXPR=1 -fmad=false -Xcompiler=-Wall>
  $<$<AND:$<BOOL:${CONVOY_WERROR}>,$<COMPILE_LANGUAGE:CUDA>>:-Werror=all-warnings>)

# convoy_nvidia_library(<name> <header> <so> <version header> <macro prefix> <least version>): finds it,
# checks its version, makes convoy::<name>.
function(convoy_nvidia_library name header so version_header prefix least)
  string(TOUPPER ${name} upper)
  set(hints ${CUDAToolkit_INCLUDE_DIRS} ${CUDAToolkit_LIBRARY_DIR})
  if(CONVOY_NVIDIA_WHEELS)
    list(PREPEND hints "${CONVOY_NVIDIA_WHEELS}/${name}")
  endif()
  find_path(${upper}_INCLUDE_DIR ${header} HINTS ${hints} PATH_SUFFIXES include)
  find_library(${upper}_LIBRARY NAMES ${so} HINTS ${hints} PATH_SUFFIXES lib lib64)
  if(NOT ${upper}_INCLUDE_DIR OR NOT ${upper}_LIBRARY)
    message(FATAL_ERROR "CONVOY_CUDA is ON, but ${header} or ${so} was not found: install ${name} ${least} "
                        "beside the CUDA toolkit, or give the wheels with -DCONVOY_NVIDIA_WHEELS=DIR")
  endif()
  set(version "")
  file(STRINGS "${${upper}_INCLUDE_DIR}/${version_header}" lines REGEX "^#define ${prefix}_(MAJOR|MINOR) ")
  foreach(part IN ITEMS MAJOR MINOR)
    if("${lines}" MATCHES "${prefix}_${part} +([0-9]+)")
      list(APPEND version ${CMAKE_MATCH_1})
    endif()
  endforeach()
  list(JOIN version "." version)
  if(version VERSION_LESS least)
    message(FATAL_ERROR "${name} ${least} or newer is needed, ${${upper}_INCLUDE_DIR} has ${version}")
  endif()
  message(STATUS "Found ${name}: ${${upper}_LIBRARY} (version ${version})")
  add_library(convoy::${name} INTERFACE IMPORTED GLOBAL)
  target_include_directories(convoy::${name} SYSTEM INTERFACE "${${upper}_INCLUDE_DIR}")
  target_link_libraries(convoy::${name} INTERFACE "${${upper}_LIBRARY}")
endfunction()

convoy_nvidia_library(cudnn cudnn.h libcudnn.so.9 cudnn_version.h CUDNN 9.0)
convoy_nvidia_library(nccl nccl.h libnccl.so.2 nccl.h NCCL 2.28)

# What runs on a GPU. Programs link convoy::gpu; tests link convoy::emulated_gpu, which is made from the
# same files (tests/support/emulated_gpu) and needs no GPU.
add_library(convoy_gpu OBJECT)
add_library(convoy::gpu ALIAS convoy_gpu)
target_link_libraries(convoy_gpu PUBLIC
  convoy_options CUDA::cudart_static CUDA::cublasLt convoy::cudnn convoy::nccl)

# convoy_gpu_code(<file> ...): files of the calling folder that need a GPU or its stand-in.
function(convoy_gpu_code)
  list(TRANSFORM ARGN PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/")
  target_sources(convoy_gpu PRIVATE ${ARGN})
  set_property(GLOBAL APPEND PROPERTY CONVOY_GPU_CODE ${ARGN})
endfunction()
