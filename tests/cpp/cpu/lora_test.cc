#include <algorithm>
#include <atomic>
#include <map>
#include <thread>

#include "cpu/cpu_testing.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kIn = 70;
constexpr LoraPart kParts[] = {{0, 41}, {41, 16}, {57, 33}};  // no whole panels
constexpr int64_t kOut = 90;
constexpr LoraLimits kLimits{4, 20};

// A bank whose slots have ranks of their own, and what it should add.
class Bank {
 public:
  Bank(Backend& backend, DType dtype) : backend_(backend), dtype_(dtype) {
    bank_ = backend.create_lora_bank(kIn, kParts, kLimits);
  }

  void load(int32_t slot, int64_t part, int64_t rank, uint32_t seed) {
    Pair& pair = pairs_[{slot, part}];
    pair = {rank, 0.25f * static_cast<float>(slot + 1), random_floats(rank * kIn, seed, 0.3f),
            random_floats(kParts[part].num_rows * rank, seed + 1, 0.3f)};
    for (std::vector<float>* values : {&pair.a, &pair.b}) {
      for (float& value : *values) value = round_to(dtype_, value);
    }
    backend_.load_lora(*bank_, slot, part,
                       {pair.scale, float_view(pair.a, rank, kIn),
                        float_view(pair.b, kParts[part].num_rows, rank)});
  }
  void clear(int32_t slot) {
    backend_.clear_lora(*bank_, slot);
    for (int64_t part = 0; part < 3; ++part) pairs_.erase({slot, part});
  }

  // out + what the adapters of the rows add.
  std::vector<float> run(std::vector<float> x, std::vector<float> out,
                         const std::vector<int32_t>& slots) const {
    const int64_t rows = std::ssize(slots);
    std::vector<int32_t> memory(lora_plan_size(rows, kLimits.num_slots));
    const LoraPlan plan{memory.data(), rows, kLimits.num_slots};
    backend_.plan_lora(slots.data(), nullptr, plan);
    backend_.add_lora(*bank_, plan, matrix(x, rows, kIn), matrix(out, rows, kOut));
    return out;
  }

  std::vector<double> twin(const float* x, const float* out, int32_t slot) const {
    std::vector<double> sum(out, out + kOut);
    for (int64_t part = 0; part < 3; ++part) {
      const auto found = pairs_.find({slot, part});
      if (found == pairs_.end()) continue;
      const Pair& pair = found->second;
      for (int64_t r = 0; r < pair.rank; ++r) {
        double product = 0.0;
        for (int64_t i = 0; i < kIn; ++i) product += double{x[i]} * pair.a[r * kIn + i];
        for (int64_t c = 0; c < kParts[part].num_rows; ++c) {
          sum[kParts[part].row_begin + c] += pair.scale * product * pair.b[c * pair.rank + r];
        }
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
  std::unique_ptr<LoraBank> bank_;
  std::map<std::pair<int32_t, int64_t>, Pair> pairs_;
};

// Slot 0 has one part, slot 1 every one, slot 2 the greatest rank, slot 3 nothing.
void fill(Bank& bank) {
  bank.load(0, 1, 5, 10);
  for (int64_t part = 0; part < 3; ++part) bank.load(1, part, 1 + 8 * part, 20 + 2 * part);
  bank.load(2, 0, 20, 40);
  bank.load(2, 2, 16, 50);
}

std::vector<int32_t> some_slots(int64_t rows) {
  std::vector<int32_t> slots(rows);
  for (int64_t i = 0; i < rows; ++i) slots[i] = static_cast<int32_t>(i * i * 7 % 5) - 1;
  return slots;
}

std::vector<float> row(const std::vector<float>& values, int64_t index, int64_t size) {
  return {values.begin() + index * size, values.begin() + (index + 1) * size};
}

class LoraTest : public EachIsa {
 protected:
  static std::unique_ptr<Backend> backend(DType dtype, int32_t num_threads = 2) {
    return create_backend(backend_options(isa(), dtype, num_threads));
  }
};
OCTAVO_TEST_EACH_ISA(LoraTest);

TEST_P(LoraTest, MatchesADoublePrecisionTwin) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto b = backend(dtype);
    Bank bank(*b, dtype);
    fill(bank);
    // Against bfloat16 weights x and the first product are rounded too.
    const double tolerance = dtype == DType::kBFloat16 && rounds_activations() ? 0.1 : 2e-5;
    for (const int64_t rows : {1, 3, 70, 200}) {
      const auto x = random_floats(rows * kIn, 1), out = random_floats(rows * kOut, 2);
      const auto slots = some_slots(rows);
      const auto got = bank.run(x, out, slots);
      for (int64_t r = 0; r < rows; ++r) {
        const auto expected = bank.twin(&x[r * kIn], &out[r * kOut], slots[r]);
        for (int64_t c = 0; c < kOut; ++c) {
          ASSERT_NEAR(got[r * kOut + c], expected[c], tolerance) << rows << " rows, row " << r;
        }
      }
    }
  }
}

TEST_P(LoraTest, ARowDoesNotDependOnTheBatchOrTheThreads) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const auto b = backend(dtype), single = backend(dtype, 1);
    Bank bank(*b, dtype), bank_of_one(*single, dtype);
    fill(bank);
    fill(bank_of_one);
    constexpr int64_t kRows = 150;
    const auto x = random_floats(kRows * kIn, 3), out = random_floats(kRows * kOut, 4);
    const auto slots = some_slots(kRows);
    const auto all = bank.run(x, out, slots);
    for (int64_t r = 0; r < kRows; r += 13) {
      EXPECT_TRUE(
          same_bits(bank.run(row(x, r, kIn), row(out, r, kOut), {slots[r]}), row(all, r, kOut)));
    }
    EXPECT_TRUE(same_bits(bank_of_one.run(x, out, slots), all));
  }
}

TEST_P(LoraTest, RowsWithoutAnAdapterAndEmptySlotsStayAsTheyAre) {
  const auto b = backend(DType::kFloat32);
  Bank bank(*b, DType::kFloat32);
  const auto x = random_floats(3 * kIn, 5), out = random_floats(3 * kOut, 6);
  EXPECT_TRUE(same_bits(bank.run(x, out, {0, 1, -1}), out));
  fill(bank);
  const auto changed = bank.run(x, out, {3, 1, -1});
  EXPECT_TRUE(same_bits(row(changed, 0, kOut), row(out, 0, kOut)));
  EXPECT_FALSE(same_bits(row(changed, 1, kOut), row(out, 1, kOut)));
  EXPECT_TRUE(same_bits(row(changed, 2, kOut), row(out, 2, kOut)));
  bank.clear(1);
  EXPECT_TRUE(same_bits(bank.run(x, out, {3, 1, -1}), out));
}

TEST_P(LoraTest, ASlotIsLoadedAnewWithAnotherRank) {
  const auto b = backend(DType::kBFloat16);
  Bank reused(*b, DType::kBFloat16), fresh(*b, DType::kBFloat16);
  reused.load(0, 0, 20, 60);
  reused.clear(0);
  reused.load(0, 0, 3, 70);
  fresh.load(0, 0, 3, 70);
  const auto x = random_floats(kIn, 7), out = random_floats(kOut, 8);
  EXPECT_TRUE(same_bits(reused.run(x, out, {0}), fresh.run(x, out, {0})));
}

// For the thread sanitizer too: nothing of a slot is read in which no row is.
TEST_P(LoraTest, ASlotIsLoadedWhileOthersAreRead) {
  const auto b = backend(DType::kFloat32);
  Bank bank(*b, DType::kFloat32);
  fill(bank);
  const auto x = random_floats(3 * kIn, 5), out = random_floats(3 * kOut, 6);
  const std::vector<int32_t> slots = {0, 2, -1};
  const auto expected = bank.run(x, out, slots);
  std::atomic<bool> is_done{false};
  std::thread loader([&] {
    for (uint32_t seed = 0; seed < 200; ++seed) {
      bank.clear(1);
      bank.load(1, seed % 3, 1 + seed % 20, seed);
    }
    is_done = true;
  });
  bool is_same = true;
  while (!is_done) is_same = same_bits(bank.run(x, out, slots), expected) && is_same;
  loader.join();
  EXPECT_TRUE(is_same);
}

TEST_P(LoraTest, PlansRowsByTheirIndices) {
  const auto b = backend(DType::kFloat32);
  Bank bank(*b, DType::kFloat32);
  fill(bank);
  std::vector<int32_t> slots = {-1, 2, 1, 0, 1}, rows = {4, 1};
  std::vector<int32_t> memory(lora_plan_size(2, kLimits.num_slots));
  const LoraPlan plan{memory.data(), 2, kLimits.num_slots};
  b->plan_lora(slots.data(), rows.data(), plan);
  // Slot 1 has the first of the two rows, slot 2 the second.
  EXPECT_EQ((std::vector<int32_t>{memory.begin(), memory.begin() + 2 + 5}),
            (std::vector<int32_t>{0, 1, 0, 0, 1, 2, 2}));
}

}  // namespace
}  // namespace octavo::cpu
