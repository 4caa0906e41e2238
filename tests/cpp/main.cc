// Entry point of the C++ tests (Boost.Test, header only). `te_tests --list_content` names them all;
// `te_tests --run_test=suite/case` runs one.
#define BOOST_TEST_MODULE tiered_emb
#include <boost/test/included/unit_test.hpp>
