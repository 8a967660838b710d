#include "model/loras.h"

#include <utility>

#include "base/errors.h"

namespace octavo {
namespace {

constexpr std::string_view kSuffix = ".weight";

// A linear weight that is a target, and its parts in row order.
struct Linear {
  int64_t in_features = 0;
  std::vector<LoraPart> parts;
  std::vector<std::string> names;
};

// By index of the linear weight; those that are no targets have no parts.
std::vector<Linear> target_linears(const Weights& weights) {
  std::vector<Linear> linears(weights.num_linears());
  for (const WeightSpec& spec : weights.specs()) {
    if (spec.kind != WeightKind::kMatrix || !weights.is_projection({spec.target})) continue;
    Linear& linear = linears[spec.target];
    linear.in_features = spec.cols;
    linear.parts.push_back({spec.row_begin, spec.rows});
    linear.names.push_back(spec.name.substr(0, spec.name.size() - kSuffix.size()));
  }
  return linears;
}

std::string shape_text(const WeightView& view) {
  return "[" + std::to_string(view.rows) + ", " + std::to_string(view.cols) + "]";
}

}  // namespace

std::vector<LoraTarget> lora_targets(const Weights& weights) {
  std::vector<LoraTarget> targets;
  for (const Linear& linear : target_linears(weights)) {
    for (size_t i = 0; i < linear.parts.size(); ++i) {
      targets.push_back({linear.names[i], linear.in_features, linear.parts[i].num_rows});
    }
  }
  return targets;
}

Loras::Loras(Backend& backend, const Weights& weights, const LoraLimits& limits)
    : backend_(backend), limits_(limits) {
  const std::vector<Linear> linears = target_linears(weights);
  banks_.resize(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    const Linear& linear = linears[i];
    if (linear.parts.empty()) continue;
    check(std::ssize(linear.parts) <= kMaxLoraParts, "a fused projection of too many parts");
    banks_[i] = backend.create_lora_bank(linear.in_features, linear.parts, limits);
    for (size_t part = 0; part < linear.parts.size(); ++part) {
      places_[linear.names[part]] = {static_cast<int32_t>(i), static_cast<int64_t>(part),
                                     linear.in_features, linear.parts[part].num_rows};
    }
  }
}

int64_t Loras::planned_bytes(const Backend& backend, const Weights& weights,
                             const LoraLimits& limits) {
  int64_t bytes = 0;
  for (const Linear& linear : target_linears(weights)) {
    if (linear.parts.empty()) continue;
    bytes += backend.lora_bank_bytes(linear.in_features, linear.parts, limits);
  }
  return bytes;
}

void Loras::load(int32_t slot, std::string_view target, const LoraView& view) {
  const auto found = places_.find(std::string(target));
  if (found == places_.end()) {
    throw CheckpointError("'" + std::string(target) + "' is no projection of this model");
  }
  const Place& place = found->second;
  const int64_t rank = view.a.rows;
  if (rank < 1 || view.b.cols != rank || view.a.cols != place.in_features ||
      view.b.rows != place.out_features) {
    throw CheckpointError("'" + found->first + "': " + shape_text(view.a) + " and " +
                          shape_text(view.b) + " do not fit a projection of " +
                          std::to_string(place.in_features) + " to " +
                          std::to_string(place.out_features) + " features");
  }
  if (rank > limits_.max_rank) {
    throw CheckpointError("'" + found->first + "' has rank " + std::to_string(rank) +
                          ", above --max-lora-rank " + std::to_string(limits_.max_rank));
  }
  backend_.load_lora(*banks_[place.linear], slot, place.part, view);
}

void Loras::clear(int32_t slot) {
  for (const auto& bank : banks_) {
    if (bank != nullptr) backend_.clear_lora(*bank, slot);
  }
}

}  // namespace octavo
