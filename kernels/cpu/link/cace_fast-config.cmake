# find_package(cace_fast CONFIG): target cace_fast::cace_fast, the C interface of the CPU engine.
get_filename_component(_cace_fast_folder "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
if(NOT TARGET cace_fast::cace_fast)
  add_library(cace_fast::cace_fast SHARED IMPORTED)
  set_target_properties(cace_fast::cace_fast PROPERTIES
    IMPORTED_LOCATION
      "${_cace_fast_folder}/${CMAKE_SHARED_LIBRARY_PREFIX}cace_fast${CMAKE_SHARED_LIBRARY_SUFFIX}"
    IMPORTED_NO_SONAME TRUE
    INTERFACE_INCLUDE_DIRECTORIES "${_cace_fast_folder}/csrc")
endif()
unset(_cace_fast_folder)
