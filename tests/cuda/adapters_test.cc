// Adapters through the backend against float64: mixed slots and ranks, decode and prefill sizes.
#include <algorithm>
#include <map>

#include "backend/cuda_backend.h"
#include "checker.h"

namespace octavo::cuda::testing {
namespace {

struct Shape {
  int64_t in_features;
  std::vector<LoraPart> parts;

  int64_t out_features() const { return parts.back().row_begin + parts.back().num_rows; }
};

const Shape kQkv{4096, {{0, 4096}, {4096, 1024}, {5120, 1024}}};
const Shape kGateUp{1032, {{0, 4608}, {4608, 4608}}};  // blocks of twice the size, uneven shares
const Shape kDown{14336, {{0, 4096}}};
const Shape kSmall{72, {{0, 36}, {36, 12}, {48, 12}}};

std::unique_ptr<Backend> make_backend(DType dtype, bool batch_invariant = false) {
  BackendOptions options;
  options.device = "cuda:0";
  options.weight_dtype = dtype;
  options.batch_invariant = batch_invariant;
  return create_cuda_backend(options);
}

// A bank with random adapters, and what it should add.
class Bank {
 public:
  Bank(Backend& backend, DType dtype, const Shape& shape, const LoraLimits& limits)
      : backend_(backend), dtype_(dtype), shape_(shape), limits_(limits) {
    bank_ = backend.create_lora_bank(shape.in_features, shape.parts, limits);
  }

  void load(int32_t slot, int64_t part, int64_t rank) {
    Pair& pair = pairs_[{slot, part}];
    const int64_t rows = shape_.parts[part].num_rows, in = shape_.in_features;
    pair = {rank, 0.5f + 0.25f * static_cast<float>(slot),
            random_values(rank * in, dtype_, 1.0f / std::sqrt(static_cast<float>(in))),
            random_values(rows * rank, dtype_, 1.0f / std::sqrt(static_cast<float>(rank)))};
    backend_.load_lora(*bank_, slot, part,
                       {pair.scale,
                        {pair.a.data(), DType::kFloat32, rank, in},
                        {pair.b.data(), DType::kFloat32, rows, rank}});
  }
  void clear(int32_t slot) {
    backend_.clear_lora(*bank_, slot);
    std::erase_if(pairs_, [slot](const auto& item) { return item.first.first == slot; });
  }

  // Issues the work on arrays that stay where they are.
  void issue(const DeviceMemory& slots, const DeviceMemory& plan_memory, const Array& x,
             const Array& out, int64_t rows) const {
    const LoraPlan plan{plan_memory.as<int32_t>(), rows, limits_.num_slots};
    backend_.plan_lora(slots.as<const int32_t>(), nullptr, plan);
    backend_.add_lora(*bank_, plan, x.matrix(rows, shape_.in_features),
                      out.matrix(rows, shape_.out_features()));
  }

  std::vector<float> run(const std::vector<float>& x, const std::vector<float>& out,
                         const std::vector<int32_t>& slots) const {
    const auto rows = static_cast<int64_t>(slots.size());
    const Array device_x(dtype_, x), device_out(dtype_, out);
    const DeviceMemory device_slots = upload(slots);
    const DeviceMemory plan(lora_plan_size(rows, limits_.num_slots) * 4);
    issue(device_slots, plan, device_x, device_out, rows);
    backend_.synchronize();
    return device_out.download();
  }

  double expected(const float* x, float before, int32_t slot, int64_t col) const {
    double sum = before;
    for (size_t p = 0; p < shape_.parts.size(); ++p) {
      const LoraPart& part = shape_.parts[p];
      const auto found = pairs_.find({slot, p});
      if (col < part.row_begin || col >= part.row_begin + part.num_rows) continue;
      if (found == pairs_.end()) return sum;
      const Pair& pair = found->second;
      for (int64_t r = 0; r < pair.rank; ++r) {
        double product = 0.0;
        for (int64_t i = 0; i < shape_.in_features; ++i) {
          product += double{x[i]} * pair.a[r * shape_.in_features + i];
        }
        sum += pair.scale * product * pair.b[(col - part.row_begin) * pair.rank + r];
      }
    }
    return sum;
  }

 private:
  struct Pair {
    int64_t rank = 0;
    float scale = 0.0f;
    std::vector<float> a, b;
  };
  Backend& backend_;
  const DType dtype_;
  const Shape& shape_;
  const LoraLimits limits_;
  std::unique_ptr<LoraBank> bank_;
  std::map<std::pair<int32_t, int64_t>, Pair> pairs_;
};

// Slot 0 lacks its first part, the last slot is empty, ranks differ between slots and parts.
void fill(Bank& bank, const Shape& shape, const LoraLimits& limits) {
  for (int32_t slot = 0; slot + 1 < limits.num_slots; ++slot) {
    for (int64_t part = slot == 0 ? 1 : 0; part < std::ssize(shape.parts); ++part) {
      bank.load(slot, part, std::clamp<int64_t>(1 + 7 * slot + 11 * part, 1, limits.max_rank));
    }
  }
}

std::vector<int32_t> random_slots(int64_t rows, int32_t num_slots) {
  std::vector<int32_t> slots(rows);
  for (int32_t& slot : slots) slot = static_cast<int32_t>(random_int(-1, num_slots - 1));
  return slots;
}

void check_shape(Backend& backend, DType dtype, const Shape& shape, const LoraLimits& limits,
                 const std::vector<int64_t>& row_counts) {
  Bank bank(backend, dtype, shape, limits);
  fill(bank, shape, limits);
  const int64_t in = shape.in_features, n = shape.out_features();
  for (const int64_t rows : row_counts) {
    const auto x = random_values(rows * in, dtype), out = random_values(rows * n, dtype);
    const auto slots = random_slots(rows, limits.num_slots);
    const auto all = bank.run(x, out, slots);
    std::vector<float> got;
    std::vector<double> ref;
    for (int i = 0; i < 300; ++i) {
      const int64_t row = i < 2 ? i * (rows - 1) : random_int(0, rows - 1);
      const int64_t col = i < 2 ? i * (n - 1) : random_int(0, n - 1);
      got.push_back(all[row * n + col]);
      ref.push_back(bank.expected(&x[row * in], out[row * n + col], slots[row], col));
    }
    const std::string name = std::to_string(rows) + " rows, " + std::to_string(in) + " to " +
                             std::to_string(n) + " " + name_of(dtype);
    expect_close(got, ref, 1.5 * tolerance_of(dtype), name);
    bool is_kept = true;
    for (int64_t row = 0; row < rows; ++row) {
      if (slots[row] >= 0 && slots[row] + 1 < limits.num_slots) continue;
      is_kept &= std::equal(&all[row * n], &all[row * n] + n, &out[row * n]);
    }
    expect(is_kept, name + ": a row without an adapter has changed");
    expect(bank.run(x, out, slots) == all, name + ": differs from run to run");
  }
}

CUDA_TEST(adapters_match_reference) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const auto backend = make_backend(dtype);
    check_shape(*backend, dtype, kSmall, {3, 8}, {1, 2, 15, 16, 17, 40, 256, 257, 900});
    check_shape(*backend, dtype, kQkv, {9, 64}, {1, 8, 64, 300});
    check_shape(*backend, dtype, kGateUp, {5, 40}, {1, 64, 256, 700});
    check_shape(*backend, dtype, kDown, {2, 16}, {1, 33, 260});
    check_shape(*backend, dtype, kSmall, {kMaxLoras, kMaxLoraRank}, {70, 300});
  }
}

CUDA_TEST(adapters_come_and_go) {
  const auto backend = make_backend(DType::kBFloat16);
  Bank bank(*backend, DType::kBFloat16, kSmall, {2, 20});
  const auto x = random_values(3 * 72, DType::kBFloat16),
             out = random_values(180, DType::kBFloat16);
  expect(bank.run(x, out, {0, 1, -1}) == out, "an empty bank adds nothing");
  bank.load(0, 0, 20);
  const auto first = bank.run(x, out, {0, 1, -1});
  expect(first != out, "a loaded slot adds");
  bank.clear(0);
  expect(bank.run(x, out, {0, 1, -1}) == out, "a cleared slot adds nothing");
  bank.load(0, 0, 3);
  const auto again = bank.run(x, out, {0, 1, -1});
  std::vector<float> got(again.begin(), again.begin() + 60);
  std::vector<double> ref;
  for (int64_t col = 0; col < 60; ++col) ref.push_back(bank.expected(x.data(), out[col], 0, col));
  expect_close(got, ref, 6e-3, "a slot that is loaded anew");
}

CUDA_TEST(adapter_rows_do_not_depend_on_the_batch) {
  const auto backend = make_backend(DType::kBFloat16, true);
  const LoraLimits limits{4, 32};
  Bank bank(*backend, DType::kBFloat16, kGateUp, limits);
  fill(bank, kGateUp, limits);
  const int64_t rows = 400, in = kGateUp.in_features, n = kGateUp.out_features();
  const auto x = random_values(rows * in, DType::kBFloat16);
  const auto out = random_values(rows * n, DType::kBFloat16);
  const auto slots = random_slots(rows, limits.num_slots);
  const auto all = bank.run(x, out, slots);
  for (const int64_t row : {0, 17, 399}) {
    const auto alone = bank.run({&x[row * in], &x[row * in] + in},
                                {&out[row * n], &out[row * n] + n}, {slots[row]});
    expect(std::equal(alone.begin(), alone.end(), &all[row * n]), "row " + std::to_string(row));
  }
}

CUDA_TEST(a_graph_follows_the_slots) {
  const auto backend = make_backend(DType::kBFloat16);
  const LoraLimits limits{8, 16};
  const int64_t rows = 64, in = kQkv.in_features, n = kQkv.out_features();
  Bank bank(*backend, DType::kBFloat16, kQkv, limits);
  fill(bank, kQkv, limits);
  const auto x = random_values(rows * in, DType::kBFloat16);
  const auto out = random_values(rows * n, DType::kBFloat16);
  const Array device_x(DType::kBFloat16, x);
  Array device_out(DType::kBFloat16, out);
  const DeviceMemory slots = upload(random_slots(rows, limits.num_slots));
  const DeviceMemory plan(lora_plan_size(rows, limits.num_slots) * 4);
  const auto issue = [&] { bank.issue(slots, plan, device_x, device_out, rows); };
  issue();
  const int32_t graph = backend->capture_graph(issue);
  std::vector<std::vector<int32_t>> cases = {std::vector<int32_t>(rows, -1),
                                             std::vector<int32_t>(rows, 3),
                                             random_slots(rows, limits.num_slots)};
  for (const auto& next : cases) {
    const auto eager = bank.run(x, out, next);
    backend->synchronize();
    device_out.upload(out);
    backend->copy_to_device(slots.data(), next.data(), rows * 4);
    backend->launch_graph(graph);
    backend->synchronize();
    expect(device_out.download() == eager, "a graph with other slots");
  }
}

}  // namespace
}  // namespace octavo::cuda::testing
