# Read by CMake after each project() of the engine (CMAKE_PROJECT_<name>_INCLUDE): leaves out and
# speeds up what costs compile time and is never felt at run time. benchmarks/README.md has the
# measurements. The compute kernels (ggml-cpu) are compiled exactly as upstream does.

if(PROJECT_NAME STREQUAL "llama.cpp")
    # llama-cpp-python forces this on in the cache; only llama.cpp's own programs use it.
    set(LLAMA_BUILD_COMMON OFF)
elseif(PROJECT_NAME STREQUAL "llama_cpp")
    # Called when all targets are there.
    function(trim_mtmd)
        # The descriptions of the vision and audio models are thirty small files that spend their
        # time on the same headers; libllama's, likewise small, are already combined upstream.
        get_target_property(directory mtmd SOURCE_DIR)
        get_target_property(sources mtmd SOURCES)
        list(FILTER sources EXCLUDE REGEX "^models/")
        list(TRANSFORM sources PREPEND "${directory}/")
        set_source_files_properties(${sources} TARGET_DIRECTORY mtmd
            PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
        set_target_properties(mtmd PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
    endfunction()
    cmake_language(DEFER CALL trim_mtmd)
endif()
