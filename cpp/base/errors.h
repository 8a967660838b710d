// The errors that a user can cause or meet. bindings/ maps each to the Python class of the same
// name in octavo.errors, which gives it an exit code or an HTTP status.
#pragma once

#include <stdexcept>

namespace octavo {

// A file that is not what it claims to be: truncated, overlapping, mis-shaped, mis-typed.
class CheckpointError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A sound checkpoint that this build cannot run.
class UnsupportedModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Weights, workspace or KV cache do not fit. The message names sizes and a remedy.
class OutOfMemoryError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A configuration value outside its range.
class ConfigError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A request that the engine refuses at submit (ids outside the logits, too long, bad parameter).
class InvalidRequestError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// A request for an adapter that is not loaded.
class UnknownModelError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The waiting queue is full.
class QueueFullError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The engine takes no requests: it is shutting down, or its device is lost.
class NotReadyError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The device failed. `sticky` errors leave the device unusable: the engine must be started again.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(const char* what, bool is_sticky) : std::runtime_error(what), sticky(is_sticky) {}
  const bool sticky;
};

}  // namespace octavo
