// Usage: what this process has used so far: time, processor time, bytes to and from devices.
//
// Device bytes are the kernel's own count of this process (/proc/self/io): of direct I/O what was
// submitted, of the page cache what was read into it and what was made dirty. Processor time is
// that of all threads of the process; work of kernel threads on its behalf is in no count.
// Thread-safety: pure functions. Cost: a few system calls.
#pragma once

#include <cstdint>

namespace te::bench {

struct Usage {
  double seconds = 0;
  double cpu_s = 0;         // all threads
  double caller_cpu_s = 0;  // the calling thread
  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;

  static Usage now();
  Usage operator-(const Usage& earlier) const;
  Usage& operator+=(const Usage& other);
};

}  // namespace te::bench
