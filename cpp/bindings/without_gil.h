// WithoutGil: from its construction to its end this thread does not hold the GIL.
//
// As nb::gil_scoped_release, but for the end of the interpreter. A thread that asks for the GIL
// then is ended by pthread_exit, whose unwinding meets nanobind's noexcept frames: the process
// would abort. It waits here instead until the process is gone, as Python does from 3.14 on.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace te {

class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  PyThreadState* state_;
};

}  // namespace te
