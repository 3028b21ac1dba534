# cmake -D NM=nm -D "OBJECTS=a.o|b.o" -P check_kernel_symbols.cmake
#
# Kernels are compiled once per instruction set. Where two object files define the same inline
# function (a weak symbol), the linker keeps one of them, and that may be the one with AVX-512, for
# a machine without it. So the kernels' objects may define no weak symbol (W, V) and no unique one
# (u); except the reference to the personality routine, which is data and the same in all of them.
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
list(LENGTH OBJECTS count)
if(count EQUAL 0)
  message(FATAL_ERROR "no object files given")
endif()
set(shared "")
set(kernels 0)
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" "${object}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" symbols "${symbols}")
  foreach(symbol IN LISTS symbols)
    if(symbol MATCHES "^[0-9a-f]+ ([WVu]) (.*)$" AND
       NOT CMAKE_MATCH_2 STREQUAL "DW.ref.__gxx_personality_v0")
      list(APPEND shared "${object}: ${CMAKE_MATCH_2}")
    elseif(symbol MATCHES "^[0-9a-f]+ [A-Za-z] .*isa_.*_kernels")
      math(EXPR kernels "${kernels} + 1")
    endif()
  endforeach()
endforeach()
# So that a change of nm's output or of the names cannot make this test say yes to nothing.
if(kernels LESS count)
  message(FATAL_ERROR "found only ${kernels} kernel tables in ${count} object files")
endif()
if(shared)
  list(JOIN shared "\n  " shared)
  message(FATAL_ERROR "the linker may share these between instruction sets; make them "
                      "always_inline, static, or members of namespace CONVOY_ISA:\n  ${shared}")
endif()
message("${kernels} kernel tables in ${count} object files share no symbol")
