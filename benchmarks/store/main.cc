// te_store_bench: one contender of the store benchmark, driven line by line.
//
//   te_store_bench peer=log directory=/nvme/ours rows=1000000 row_bytes=132 io=io_uring
//
// Arguments are the fields of StoreOptions. Each line of the standard input is a command with its
// arguments, each line of the standard output the JSON object that answers it, or {"error": ...}
// and the end of the program:
//
//   fill | settle | flush | prepare_for_reads | drop_cache | threads N | counters
//   get SECONDS BATCH | put BATCH ARENA_BYTES | update LOOKUPS BATCH
//   churn uniform|zipf CACHE_ROWS ROWS_EVICTED BATCH
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "row_store.h"
#include "usage.h"
#include "workload.h"

namespace te::bench {
namespace {

Status invalid(const std::string& what) { return Status(StatusCode::kInvalidArgument, what); }

Result<StoreOptions> parse(int argc, char** argv) {
  StoreOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) return invalid("not name=value: " + argument);
    const std::string name = argument.substr(0, equals);
    const std::string value = argument.substr(equals + 1);
    const uint64_t number = std::strtoull(value.c_str(), nullptr, 10);
    if (name == "peer") {
      options.peer = value;
    } else if (name == "directory") {
      options.directory = value;
    } else if (name == "io") {
      options.io = value;
    } else if (name == "compaction") {
      options.compaction = value;
    } else if (name == "rows") {
      options.rows = number;
    } else if (name == "row_bytes") {
      options.row_bytes = static_cast<uint32_t>(number);
    } else if (name == "threads") {
      options.threads = number;
    } else if (name == "shards") {
      options.shards = number;
    } else if (name == "memtable_bytes") {
      options.memtable_bytes = number;
    } else if (name == "drop_bytes") {
      options.drop_bytes = number;
    } else {
      return invalid("no such argument: " + name);
    }
  }
  return options;
}

Result<std::unique_ptr<RowStore>> make_store(const StoreOptions& options) {
  if (options.peer == "log") return make_log_store(options);
  if (options.peer == "page") return make_page_store(options);
  if (options.peer == "mmap") return make_mmap_store(options);
  if (options.peer == "rocksdb") return make_rocksdb_store(options);
  return invalid("no such peer: " + options.peer);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out + "\"";
}

void print(const Outcome& outcome, const Counters& before, const Counters& after) {
  const Usage& usage = outcome.usage;
  std::cout << "{\"seconds\": " << usage.seconds << ", \"cpu_s\": " << usage.cpu_s
            << ", \"caller_cpu_s\": " << usage.caller_cpu_s
            << ", \"read_bytes\": " << usage.read_bytes
            << ", \"written_bytes\": " << usage.written_bytes
            << ", \"lookups\": " << outcome.lookups << ", \"rows_got\": " << outcome.rows_got
            << ", \"rows_put\": " << outcome.rows_put << ", \"settle_s\": " << outcome.settle_s
            << ", \"counters\": {";
  const char* comma = "";
  for (const auto& [name, value] : after) {
    const bool is_level = name.ends_with("_now");
    const uint64_t first = is_level || !before.contains(name) ? 0 : before.at(name);
    std::cout << comma << quoted(name) << ": " << value - first;
    comma = ", ";
  }
  std::cout << "}}" << std::endl;
}

// A command that is the store's own: it is timed, and moves no rows.
Result<Outcome> timed(RowStore& store, Status (RowStore::*command)()) {
  const Usage before = Usage::now();
  TE_RETURN_IF_ERROR((store.*command)());
  Outcome outcome;
  outcome.usage = Usage::now() - before;
  return outcome;
}

Result<Outcome> perform(RowStore& store, Workload& work, std::istream& line) {
  std::string command;
  std::string stream;
  double seconds = 0;
  uint64_t a = 0;
  uint64_t b = 0;
  uint32_t batch = 0;
  line >> command;
  if (command == "fill") return work.fill();
  if (command == "settle") return timed(store, &RowStore::settle);
  if (command == "flush") return work.flush();
  if (command == "prepare_for_reads") return timed(store, &RowStore::prepare_for_reads);
  if (command == "drop_cache") return timed(store, &RowStore::drop_cache);
  if (command == "counters") return Outcome{};
  if (command == "threads" && line >> a) {
    store.set_threads(a);
    return Outcome{};
  }
  if (command == "get" && line >> seconds >> batch) return work.get(seconds, batch);
  if (command == "put" && line >> batch >> a) return work.put(batch, a);
  if (command == "update" && line >> a >> batch) return work.update(a, batch);
  if (command == "churn" && line >> stream >> a >> b >> batch) {
    const bool is_zipf = stream == "zipf";
    return work.churn(is_zipf ? Popularity::kZipf : Popularity::kUniform, a, b, batch);
  }
  return invalid("not understood: " + command);
}

int fail(const Status& status) {
  std::cout << "{\"error\": " << quoted(status.message()) << "}" << std::endl;
  return 1;
}

int serve(int argc, char** argv) {
  auto options = parse(argc, argv);
  if (!options) return fail(options.status());
  auto store = make_store(options.value());
  if (!store) return fail(store.status());
  std::cout.precision(10);
  Workload work(*store.value(), options.value().rows, options.value().row_bytes);
  std::cout << "{}" << std::endl;  // ready
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    const Counters before = store.value()->counters();
    auto outcome = perform(*store.value(), work, line);
    if (!outcome) return fail(outcome.status());
    print(outcome.value(), before, store.value()->counters());
  }
  return 0;
}

}  // namespace
}  // namespace te::bench

int main(int argc, char** argv) { return te::bench::serve(argc, argv); }
