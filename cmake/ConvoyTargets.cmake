# The build's few rules in one place: warnings, sanitizers, ccache, one library per folder,
# kernels compiled once per instruction set.

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, Debug or RelWithDebInfo" FORCE)
endif()
set(CONVOY_SANITIZE "" CACHE STRING "Sanitizers for every target, e.g. address,undefined or thread")

find_program(CONVOY_CCACHE ccache)
if(CONVOY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CONVOY_CCACHE}")
endif()

# What every target of ours is compiled with. FMA contraction is off so that a sum has the same bits
# in every build type and instruction set; kernels say fma where they mean it.
add_library(convoy_options INTERFACE)
target_compile_features(convoy_options INTERFACE cxx_std_20)
target_include_directories(convoy_options INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(convoy_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers -Wshadow
                            -Wnon-virtual-dtor -Woverloaded-virtual
                            -ffp-contract=off>
  $<$<AND:$<BOOL:${CONVOY_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
if(CONVOY_SANITIZE)
  target_compile_options(convoy_options INTERFACE
    -fsanitize=${CONVOY_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  # operator[] beyond a vector's size but within its capacity is no access that asan could see.
  target_compile_definitions(convoy_options INTERFACE _GLIBCXX_ASSERTIONS)
  target_link_options(convoy_options INTERFACE -fsanitize=${CONVOY_SANITIZE})
endif()

# convoy_library(<name> SOURCES ... LINK ... [PRIVATE_LINK ...]): a folder's library, convoy::<name>.
function(convoy_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(convoy_${name} STATIC ${ARG_SOURCES})
  add_library(convoy::${name} ALIAS convoy_${name})
  target_link_libraries(convoy_${name} PUBLIC convoy_options ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK})
endfunction()

# convoy_kernels(<target> <file>_kernels.cpp ...): compiles each file once per instruction set into
# the target; the file puts its code into the namespace CONVOY_ISA (ops/simd.h says how).
function(convoy_kernels target)
  set(flags_baseline "")
  set(flags_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(flags_avx512_bf16 ${flags_avx512} -mavx512bf16 -mavx512vbmi -mavx512vnni)
  set(isas baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND isas avx2 avx512 avx512_bf16)
  endif()
  foreach(isa IN LISTS isas)
    add_library(${target}_${isa} OBJECT ${ARGN})
    target_link_libraries(${target}_${isa} PRIVATE convoy_options)
    if(TARGET OpenMP::OpenMP_CXX)  # CONVOY_PARTS has none
      target_link_libraries(${target}_${isa} PRIVATE OpenMP::OpenMP_CXX)
    endif()
    target_compile_definitions(${target}_${isa} PRIVATE CONVOY_ISA=isa_${isa})
    # Kernels are optimised in every build type: a debug build would need hours for a test.
    target_compile_options(${target}_${isa} PRIVATE -O3 -fno-math-errno -Wno-psabi ${flags_${isa}})
    if(CONVOY_SANITIZE MATCHES address AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      # GCC 12 takes the sanitizer's stack for aligned to 64 bytes, which it is not: with
      # detect_stack_use_after_return an AVX-512 local crashes.
      target_compile_options(${target}_${isa} PRIVATE --param=asan-use-after-return=0)
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
  endforeach()
endfunction()
