# The cuda backend: a plugin libxlstm_cuda.so that the library opens when it is asked for, so that nothing else depends on
# CUDA. Its sources are compiled by nvcc in rules of their own; the C flags of the project do not apply to them.
# Targets: xlstm_cuda (the plugin), test_cuda and cuda_bench (need a GPU to run; tools/gpu_tests.sh). ON builds the plugin
# with everything else and installs it; AUTO defines the targets where a toolkit is found, for `ninja xlstm_cuda`, because
# compiling for six architectures takes minutes.
set(XLSTM_CUDA AUTO CACHE STRING "the cuda backend: ON, OFF or AUTO (targets where nvcc and cublasLt.h are found)")
set(XLSTM_CUDA_ARCHITECTURES "80;86;89;90;100;120" CACHE STRING "compute capabilities the cuda backend holds code for")

if(NOT XLSTM_CUDA)
  return()
endif()
find_program(XLSTM_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
if(XLSTM_NVCC)
  get_filename_component(XLSTM_CUDA_ROOT ${XLSTM_NVCC} DIRECTORY)
  get_filename_component(XLSTM_CUDA_ROOT ${XLSTM_CUDA_ROOT} DIRECTORY)
  find_path(XLSTM_CUBLASLT_INCLUDE cublasLt.h HINTS ${XLSTM_CUDA_ROOT}/include)
  find_library(XLSTM_CUDART cudart_static HINTS ${XLSTM_CUDA_ROOT}/lib64 ${XLSTM_CUDA_ROOT}/lib)
endif()
if(NOT XLSTM_NVCC OR NOT XLSTM_CUBLASLT_INCLUDE OR NOT XLSTM_CUDART)
  if(NOT XLSTM_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "XLSTM_CUDA=${XLSTM_CUDA}, but nvcc, cublasLt.h or libcudart_static.a was not found")
  endif()
  message(STATUS "cuda backend: not built (no CUDA toolkit found)")
  return()
endif()
message(STATUS "cuda backend: ${XLSTM_NVCC}, architectures ${XLSTM_CUDA_ARCHITECTURES}")

set(CUDA_FLAGS -std=c++20 -O3 -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wshadow -Werror all-warnings -D_GNU_SOURCE
    -I${PROJECT_SOURCE_DIR}/include -I${PROJECT_SOURCE_DIR}/src -I${PROJECT_SOURCE_DIR}/src/cuda -I${XLSTM_CUBLASLT_INCLUDE})
foreach(arch ${XLSTM_CUDA_ARCHITECTURES})
  list(APPEND CUDA_FLAGS -gencode=arch=compute_${arch},code=sm_${arch})
endforeach()
# the newest one also as intermediate code, for GPUs to come
list(GET XLSTM_CUDA_ARCHITECTURES -1 arch)
list(APPEND CUDA_FLAGS -gencode=arch=compute_${arch},code=compute_${arch})

function(cuda_object out source)
  get_filename_component(base ${source} NAME_WE)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${base}.o)
  add_custom_command(OUTPUT ${object}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/cuda
    COMMAND ${XLSTM_NVCC} ${CUDA_FLAGS} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d COMMENT "nvcc ${base}" VERBATIM)
  set(${out} ${object} PARENT_SCOPE)
endfunction()

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cu)
set(CUDA_OBJECTS)
foreach(source ${CUDA_SOURCES})
  cuda_object(object ${source})
  list(APPEND CUDA_OBJECTS ${object})
endforeach()

# libxlstm_cuda.so holds what it needs of the library itself and exports two names.
add_library(xlstm_cuda MODULE ${CUDA_OBJECTS})
set_target_properties(xlstm_cuda PROPERTIES LINKER_LANGUAGE C OUTPUT_NAME xlstm_cuda)
target_link_libraries(xlstm_cuda PRIVATE xlstm_static ${XLSTM_CUDART} stdc++ Threads::Threads ${CMAKE_DL_LIBS} rt m)
target_link_options(xlstm_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--gc-sections -Wl,--no-undefined)
if(XLSTM_CUDA STREQUAL AUTO)
  set_target_properties(xlstm_cuda PROPERTIES EXCLUDE_FROM_ALL ON)
else()
  install(TARGETS xlstm_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

foreach(program tests/cuda/test_cuda bench/cuda_bench)
  get_filename_component(name ${program} NAME)
  cuda_object(object ${PROJECT_SOURCE_DIR}/${program}.cu)
  add_executable(${name} EXCLUDE_FROM_ALL ${object} ${CUDA_OBJECTS})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C)
  target_link_libraries(${name} PRIVATE xlstm_static ${XLSTM_CUDART} stdc++ Threads::Threads ${CMAKE_DL_LIBS} rt m)
endforeach()
