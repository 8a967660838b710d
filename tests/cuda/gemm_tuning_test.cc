// Measured choices of cuBLASLt: the file, and products that are run by it.
#include "cuda/gemm_tuning.h"

#include <filesystem>
#include <fstream>

#include "checker.h"
#include "cuda/cublas_lt.h"

namespace octavo::cuda::testing {
namespace {

// A file name of its own; what is there is removed at the end.
class TemporaryFile {
 public:
  TemporaryFile()
      : path_((std::filesystem::temp_directory_path() /
               ("octavo-tuning-" + std::to_string(random_int(0, int64_t{1} << 60)) + "/table"))
                  .string()) {}
  ~TemporaryFile() {
    std::error_code error;
    std::filesystem::remove_all(std::filesystem::path(path_).parent_path(), error);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  void append(const std::string& text) const { std::ofstream(path_, std::ios::app) << text; }
  void write(const std::string& text) const { std::ofstream(path_) << text; }

 private:
  std::string path_;
};

CUDA_TEST(gemm_tuning_file) {
  const TemporaryFile file;
  const GemmTuning::Algorithm first{1, 2, 3, 4, 5, 6, 7, ~uint64_t{0}}, second{9};
  expect(!GemmTuning(file.path()).find("a").has_value(), "an absent file is empty");
  GemmTuning writer(file.path());
  writer.put("GPU; 96 x 64 -> 32 = odd", first);
  expect(writer.save(), "save into a new directory");
  GemmTuning other(file.path());
  expect(other.find("GPU; 96 x 64 -> 32 = odd") == first, "an entry comes back");
  other.put("b", second);
  expect(other.save(), "save over a file");
  writer.put("c", second);
  expect(writer.save() && GemmTuning(file.path()).find("b") == second, "other entries are kept");

  const std::string part_of_another = file.path() + ".part";
  std::filesystem::create_directory(part_of_another);
  expect(writer.save(), "what another process is about to write is no obstacle");
  std::filesystem::remove(part_of_another);

  file.append(
      "no entry\nd = 1 2 3\ne = 1 2 3 4 5 6 7 8 9\nf = 1 2 3 4 5 6 7 x\ng = 1 2 3 4 5 6 7 8");
  const GemmTuning damaged(file.path());
  for (const char* key : {"no entry", "d", "e", "f"}) {
    expect(!damaged.find(key).has_value(), std::string("a damaged line is left out: ") + key);
  }
  expect(damaged.find("c") == second && damaged.find("g").has_value(), "lines around it hold");

  file.write("another format\nb = 1 2 3 4 5 6 7 8\n");
  expect(!GemmTuning(file.path()).find("b").has_value(), "another format is empty");
  expect(!GemmTuning("").save(), "no path, no file");
}

std::vector<float> product(Gemm& gemm, const Array& w, const Array& x, int64_t m, int64_t k,
                           int64_t n) {
  const Array out(DType::kBFloat16, m * n);
  gemm.run(context(), {w.matrix(n, k)}, x.matrix(m, k), out.matrix(m, n));
  return out.download();
}

CUDA_TEST(gemm_runs_measured_choices) {
  const TemporaryFile file;
  const int64_t m = 260, k = 1024, n = 768;
  const auto x = random_values(m * k, DType::kBFloat16);
  const auto w = random_values(n * k, DType::kBFloat16, 0.05f);
  const Array device_x(DType::kBFloat16, x), device_w(DType::kBFloat16, w);
  Gemm plain(context()), measuring(context(), {file.path(), true});
  const auto expected = product(plain, device_w, device_x, m, k, n);
  const std::vector<double> reference(expected.begin(), expected.end());
  const auto measured = product(measuring, device_w, device_x, m, k, n);
  expect_close(measured, reference, 4e-3, "measured choice");

  Gemm tuned(context(), {file.path(), false});
  expect(product(tuned, device_w, device_x, m, k, n) == measured, "the choice is found again");
}

}  // namespace
}  // namespace octavo::cuda::testing
