#include <algorithm>
#include <bit>
#include <vector>

#include "base/check.h"
#include "base/dequantize.h"
#include "cuda/lora.h"

namespace octavo::cuda {
namespace {

int64_t padded(int64_t rank) {
  return (rank + kLoraRankMultiple - 1) / kLoraRankMultiple * kLoraRankMultiple;
}

int64_t total_rows(std::span<const LoraPart> parts) {
  int64_t rows = 0;
  for (const LoraPart& part : parts) rows += part.num_rows;
  return rows;
}

int64_t a_elements(int64_t in_features, std::span<const LoraPart> parts, const LoraLimits& limits) {
  return limits.num_slots * std::ssize(parts) * padded(limits.max_rank) * in_features;
}

int64_t b_elements(std::span<const LoraPart> parts, const LoraLimits& limits) {
  return limits.num_slots * total_rows(parts) * padded(limits.max_rank);
}

}  // namespace

CudaLoraBank::CudaLoraBank(DType dtype, int64_t in_features, std::span<const LoraPart> parts,
                           const LoraLimits& limits)
    : dtype_(dtype),
      a_(dtype_bytes(dtype, a_elements(in_features, parts, limits))),
      b_(dtype_bytes(dtype, b_elements(parts, limits))),
      infos_(limits.num_slots * std::ssize(parts) * static_cast<int64_t>(sizeof(LoraPartInfo))) {
  check(std::ssize(parts) <= kMaxLoraParts, "an adapter's weight of too many parts");
  check(in_features % 8 == 0, "an adapter needs input features in whole vectors of 8");
  int64_t row = 0;
  for (const LoraPart& part : parts) {
    check(part.row_begin == row && part.num_rows % 4 == 0, "an adapter's part");
    operand_.parts[operand_.num_parts++] = part;
    row += part.num_rows;
  }
  operand_.a = a_.data();
  operand_.b = b_.data();
  operand_.infos = infos_.as<const LoraPartInfo>();
  operand_.max_rank = static_cast<int>(padded(limits.max_rank));
  operand_.in_features = static_cast<int>(in_features);
  operand_.out_rows = static_cast<int>(row);
  check_cuda(cudaMemset(infos_.data(), 0, infos_.size_bytes()));
  check_cuda(cudaDeviceSynchronize());  // the backend's stream does not wait for the default one
}

int64_t CudaLoraBank::planned_bytes(DType dtype, int64_t in_features,
                                    std::span<const LoraPart> parts, const LoraLimits& limits) {
  return dtype_bytes(dtype, a_elements(in_features, parts, limits) + b_elements(parts, limits));
}

void CudaLoraBank::load(WeightUploader& uploader, int32_t slot, int64_t part,
                        const LoraView& view) {
  const int64_t rank = view.a.rows, in = operand_.in_features, max_rank = operand_.max_rank;
  const LoraPart& place = operand_.parts[part];
  check(rank > 0 && padded(rank) <= max_rank && view.a.cols == in && view.b.cols == rank &&
            view.b.rows == place.num_rows,
        "an adapter does not fit its bank");
  std::vector<float> a(padded(rank) * in, 0.0f);
  dequantize(view.a.dtype, view.a.data, rank * in, a.data());
  const int64_t a_begin = (slot * operand_.num_parts + part) * max_rank * in;
  uploader.upload(a_.as() + dtype_bytes(dtype_, a_begin), dtype_,
                  {a.data(), DType::kFloat32, padded(rank), in});

  std::vector<float> rows(place.num_rows * rank), b(place.num_rows * padded(rank), 0.0f);
  dequantize(view.b.dtype, view.b.data, std::ssize(rows), rows.data());
  for (int64_t r = 0; r < place.num_rows; ++r) {
    std::copy_n(&rows[r * rank], rank, &b[r * padded(rank)]);
  }
  const int64_t b_begin = (slot * operand_.out_rows + place.row_begin) * max_rank;
  uploader.upload(b_.as() + dtype_bytes(dtype_, b_begin), dtype_,
                  {b.data(), DType::kFloat32, place.num_rows, padded(rank)});
  set_info(uploader, slot, part, {static_cast<int32_t>(padded(rank)), view.scale});
}

void CudaLoraBank::clear(WeightUploader& uploader, int32_t slot) {
  for (int64_t part = 0; part < operand_.num_parts; ++part) set_info(uploader, slot, part, {});
}

// Two words, copied as they are.
void CudaLoraBank::set_info(WeightUploader& uploader, int32_t slot, int64_t part,
                            LoraPartInfo info) {
  const float words[2] = {std::bit_cast<float>(info.rank), info.scale};
  uploader.upload(infos_.as<LoraPartInfo>() + slot * operand_.num_parts + part, DType::kFloat32,
                  {words, DType::kFloat32, 1, 2});
}

}  // namespace octavo::cuda
