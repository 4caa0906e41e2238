#include "usage.h"

#include <time.h>

#include <fstream>
#include <string>

namespace te::bench {
namespace {

double seconds_of(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace

Usage Usage::now() {
  Usage usage;
  std::ifstream io("/proc/self/io");
  std::string name;
  for (uint64_t value = 0; io >> name >> value;) {
    if (name == "read_bytes:") usage.read_bytes = value;
    if (name == "write_bytes:") usage.written_bytes = value;
  }
  usage.cpu_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  usage.caller_cpu_s = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  usage.seconds = seconds_of(CLOCK_MONOTONIC);
  return usage;
}

Usage Usage::operator-(const Usage& earlier) const {
  return {seconds - earlier.seconds, cpu_s - earlier.cpu_s, caller_cpu_s - earlier.caller_cpu_s,
          read_bytes - earlier.read_bytes, written_bytes - earlier.written_bytes};
}

Usage& Usage::operator+=(const Usage& other) {
  seconds += other.seconds;
  cpu_s += other.cpu_s;
  caller_cpu_s += other.caller_cpu_s;
  read_bytes += other.read_bytes;
  written_bytes += other.written_bytes;
  return *this;
}

}  // namespace te::bench
