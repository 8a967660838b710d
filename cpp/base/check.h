// Invariants. A failed check is a bug in the engine, never a user's mistake: user input is refused
// earlier with one of the errors in base/errors.h.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace octavo {

// Thrown by check(). what() names the file, the line and the broken invariant.
class CheckError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] inline void check_failed(std::string_view what, const std::source_location& where) {
  throw CheckError(std::string(where.file_name()) + ":" + std::to_string(where.line()) + ": " +
                   std::string(what));
}

// Throws CheckError unless `holds`. The message is a literal: a passing check costs one branch.
inline void check(bool holds, std::string_view what,
                  const std::source_location& where = std::source_location::current()) {
  if (!holds) [[unlikely]] {
    check_failed(what, where);
  }
}

}  // namespace octavo
