// The last check of a request before it is accepted: nothing behind it can be upset by a value.
#pragma once

#include <cstdint>
#include <span>

#include "sched/request.h"

namespace octavo {

struct RequestLimits {
  int64_t vocab_size = 0;  // width of the logits
  int64_t max_model_len = 0;
  std::span<const int32_t> eos_token_ids;
};

// Throws: InvalidRequestError, with a message fit for users that names the parameter.
void validate_request(const Request& request, const RequestLimits& limits);

}  // namespace octavo
