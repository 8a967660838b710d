#include "runner/model_runner.h"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <numeric>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/float_formats.h"

namespace octavo {
namespace {

KVCacheSpec cache_spec(const Model& model, const RunnerConfig& config, const MemoryPlan& plan) {
  KVCacheSpec spec = model.kv_cache_spec();
  spec.block_size = config.block_size;
  spec.num_blocks = plan.num_blocks;
  spec.dtype = plan.kv_dtype;
  return spec;
}

void clear_rows(size_t num_sequences, StepResult& result) {
  result.clear();
  result.token_ids.assign(num_sequences, -1);
  result.is_invalid.assign(num_sequences, 0);
}

TensorView rows_of(TensorView view, int64_t begin, int64_t count) {
  view.data = static_cast<char*>(view.data) + dtype_bytes(view.dtype, begin * view.row_stride);
  view.shape[0] = count;
  return view;
}

// Entries that one row brings; see StepResult.
int32_t entries_per_row(int32_t num_logprobs) { return num_logprobs < 0 ? 0 : 1 + num_logprobs; }

// The sampler appends entries in row order; these say which of them belong to which sequence.
void set_offsets(std::span<const SampleRow> rows, StepResult& result) {
  const size_t num_sequences = result.token_ids.size();
  result.logprob_offsets.assign(num_sequences + 1, 0);
  result.prompt_logprob_offsets.assign(num_sequences + 1, 0);
  for (const SampleRow& row : rows) {
    const SamplingParams& sampling = *row.sequence->sampling;
    if (row.target_id >= 0) {
      result.prompt_logprob_offsets[row.batch_row + 1] += entries_per_row(sampling.prompt_logprobs);
    } else {
      result.logprob_offsets[row.batch_row + 1] += entries_per_row(sampling.logprobs);
    }
  }
  for (size_t i = 0; i < num_sequences; ++i) {
    result.logprob_offsets[i + 1] += result.logprob_offsets[i];
    result.prompt_logprob_offsets[i + 1] += result.prompt_logprob_offsets[i];
  }
}

// Whether the graphs of decode steps can run `batch`: each sequence computes one token and samples.
bool is_decode(const ScheduledBatch& batch) {
  return batch.num_tokens == std::ssize(batch.sequences) &&
         std::ranges::all_of(batch.sequences, &ScheduledSequence::samples);
}

// Under kLast only the row that draws is the prompt's last.
bool pools(const SampleRow& row) {
  const Pooling pooling = row.sequence->sampling->pooling;
  return pooling == Pooling::kSum || (pooling == Pooling::kLast && row.target_id < 0);
}

void add_state(const std::byte* state, DType dtype, std::span<float> sum) {
  const auto* halves = reinterpret_cast<const uint16_t*>(state);
  for (size_t i = 0; i < sum.size(); ++i) {
    sum[i] += dtype == DType::kFloat32   ? reinterpret_cast<const float*>(state)[i]
              : dtype == DType::kFloat16 ? float16_to_float32(halves[i])
                                         : bfloat16_to_float32(halves[i]);
  }
}

}  // namespace

ModelRunner::ModelRunner(Backend& backend, Model& model, const RunnerConfig& config,
                         const MemoryPlan& plan)
    : backend_(backend),
      model_(model),
      config_(config),
      plan_(plan),
      batch_(backend, batch_limits(config, plan.max_model_len)),
      cache_(backend.create_kv_cache(cache_spec(model, config, plan))),
      workspace_(backend.allocate(model.workspace_bytes(config.max_num_batched_tokens))),
      logits_(backend.allocate(max_logits_rows(config) * model.config().vocab_size *
                               static_cast<int64_t>(sizeof(float)))),
      results_(backend.max_steps_in_flight()) {
  model_.prepare(plan.max_model_len);
}

// Nothing may still write to what is about to be freed.
ModelRunner::~ModelRunner() {
  try {
    backend_.synchronize();
  } catch (const std::exception&) {  // the device is lost: nothing writes any more
  }
}

void ModelRunner::launch(const ScheduledBatch& batch) {
  check(num_launched_ - num_waited_ < std::ssize(results_), "too many steps are in flight");
  StepResult& result = results_[num_launched_ % std::ssize(results_)];
  clear_rows(batch.sequences.size(), result);
  backend_.begin_step();
  compute(batch, result);
  backend_.end_step();
  ++num_launched_;
}

void ModelRunner::wait(StepResult& result) {
  check(num_waited_ < num_launched_, "no step is in flight");
  StepResult& finished = results_[num_waited_ % std::ssize(results_)];
  ++num_waited_;
  backend_.wait_step();
  check(finished.logprob_offsets.back() == std::ssize(finished.logprobs) &&
            finished.prompt_logprob_offsets.back() == std::ssize(finished.prompt_logprobs),
        "the sampler appended another number of log-probabilities than was asked for");
  std::swap(result, finished);
}

// Graphs hold addresses inside the cache, so they go with it, and are captured anew with the next.
// The steps that this takes may read an adapter that is being loaded: what they draw is nobody's.
void ModelRunner::free_kv_cache() {
  backend_.synchronize();
  graphs_.clear();
  backend_.clear_graphs();
  cache_.reset();
}

void ModelRunner::restore_kv_cache() {
  if (cache_ != nullptr) return;
  cache_ = backend_.create_kv_cache(cache_spec(model_, config_, plan_));
  if (!backend_.supports_graphs()) return;
  try {
    capture_graphs(warm_up_shapes(config_, plan_, true, model_.lora_limits().num_slots));
  } catch (...) {
    free_kv_cache();
    throw;
  }
}

TensorView ModelRunner::logits(int64_t num_rows) const {
  return TensorView::matrix(logits_->data(), DType::kFloat32, num_rows, model_.config().vocab_size);
}

// The least graph that has room for the batch. Its sequences must also fit the step's limits.
const ModelRunner::DecodeGraph* ModelRunner::find_graph(const ScheduledBatch& batch) const {
  if (graphs_.empty() || !is_decode(batch)) return nullptr;
  const bool wants_loras = has_loras(batch);
  const auto found = std::ranges::find_if(graphs_, [&](const DecodeGraph& graph) {
    return graph.has_loras == wants_loras && graph.num_seqs >= batch.num_tokens;
  });
  return found == graphs_.end() ? nullptr : &*found;
}

// The sampler is not part of the graph: its rows differ from step to step, and on the device its
// two kernels follow the graph without a gap, since they are launched long before it ends.
TensorView ModelRunner::forward(const ForwardInputs& inputs) {
  const TensorView hidden = model_.forward(inputs, *cache_, workspace_);
  if (inputs.num_logits > 0 && inputs.num_logits <= max_logits_rows(config_)) {
    model_.compute_logits(hidden, logits(inputs.num_logits));
  }
  return hidden;
}

void ModelRunner::compute(const ScheduledBatch& batch, StepResult& result) {
  const DecodeGraph* graph = find_graph(batch);
  const int64_t num_padding_seqs = graph == nullptr ? 0 : graph->num_seqs - batch.num_tokens;
  const ForwardInputs& inputs = batch_.build(batch, num_padding_seqs);
  TensorView hidden;
  if (graph == nullptr) {
    hidden = forward(inputs);
  } else {
    backend_.launch_graph(graph->id);
    hidden = graph->hidden;
  }
  if (batch.before_sampling) {
    backend_.synchronize();  // gives the masks all the time that the device takes
    batch.before_sampling();
  }
  pool(hidden, std::ssize(batch.sequences), result);
  set_offsets(batch_.sample_rows(), result);
  sample(hidden, inputs.num_logits, result);
}

// Reads the rows of sequences that want them and adds them up by sequence. The one place where a
// step allocates and waits: embeddings are asked for by few, and their steps are prefills.
void ModelRunner::pool(TensorView hidden, int64_t num_sequences, StepResult& result) {
  const std::span<const SampleRow> rows = batch_.sample_rows();
  const auto is_pooled = [](const SampleRow& row) { return pools(row); };
  if (std::ranges::none_of(rows, is_pooled)) return;
  const int64_t hidden_size = model_.config().hidden_size;
  std::vector<std::byte> states(dtype_bytes(hidden.dtype, std::ssize(rows) * hidden.row_stride));
  backend_.copy_to_host(states.data(), hidden.data, std::ssize(states));
  result.pooled_offsets.assign(num_sequences + 1, 0);
  int32_t last_row = -1;
  int64_t position = 0;
  for (int64_t i = 0; i < std::ssize(rows); ++i) {
    const SampleRow& row = rows[i];
    const bool is_first = row.batch_row != last_row;
    position = is_first ? row.sequence->num_computed_tokens : position + 1;
    last_row = row.batch_row;
    if (!pools(row) || position < row.sequence->num_pooled_tokens) continue;
    int32_t& end = result.pooled_offsets[row.batch_row + 1];
    if (end == 0) {
      result.pooled.resize(result.pooled.size() + hidden_size, 0.0f);
      end = static_cast<int32_t>(hidden_size);
    }
    const std::byte* state = states.data() + dtype_bytes(hidden.dtype, i * hidden.row_stride);
    add_state(state, hidden.dtype, std::span(result.pooled).last(hidden_size));
  }
  std::inclusive_scan(result.pooled_offsets.begin(), result.pooled_offsets.end(),
                      result.pooled_offsets.begin());
}

// The head and the sampler go over the rows in pieces: with prompt log-probabilities every token of
// a chunk has a row, and all their logits at once would take gigabytes. A single piece has its
// logits already.
void ModelRunner::sample(TensorView hidden, int64_t num_logits, StepResult& result) {
  const std::span<const SampleRow> rows = batch_.sample_rows();
  const int64_t rows_at_once = max_logits_rows(config_);
  for (int64_t begin = 0; begin < std::ssize(rows); begin += rows_at_once) {
    const int64_t count = std::min(rows_at_once, std::ssize(rows) - begin);
    const TensorView piece = logits(count);
    if (num_logits > rows_at_once) model_.compute_logits(rows_of(hidden, begin, count), piece);
    backend_.sample(piece, rows.subspan(begin, count), result);
  }
}

void ModelRunner::warm_up(const std::function<void(double)>& report_progress) {
  const bool has_graphs = backend_.supports_graphs();
  const std::vector<WarmUpShape> shapes =
      warm_up_shapes(config_, plan_, has_graphs, model_.lora_limits().num_slots);
  double cost = 0.0, done = 0.0;
  for (const WarmUpShape& shape : shapes) cost += warm_up_cost(shape);
  StepResult result;
  for (const WarmUpShape& shape : shapes) {
    WarmUpBatch step(shape, config_.block_size, model_.config().vocab_size);
    run(step.batch(), result);
    done += warm_up_cost(shape);
    report_progress(done / cost);
  }
  if (has_graphs) capture_graphs(shapes);
}

// After all else, when no buffer grows any more that a graph could hold the address of.
void ModelRunner::capture_graphs(std::span<const WarmUpShape> shapes) {
  StepResult result;
  graphs_.clear();
  for (const WarmUpShape& shape : shapes) {
    if (shape.num_prefills > 0) continue;
    WarmUpBatch step(shape, config_.block_size, model_.config().vocab_size);
    const ForwardInputs& inputs = batch_.build(step.batch());
    DecodeGraph graph;
    graph.num_seqs = inputs.num_seqs;
    graph.has_loras = shape.num_loras > 0;
    graph.id = backend_.capture_graph([&] { graph.hidden = forward(inputs); });
    graphs_.push_back(graph);
    run(step.batch(), result);  // a graph's first launch takes longer
  }
}

void ModelRunner::self_test() {
  constexpr int64_t kPromptTokens = 4;
  const int64_t prompt_tokens =
      std::min({kPromptTokens, config_.max_num_batched_tokens, plan_.max_model_len - 1});
  if (prompt_tokens < 1) return;
  WarmUpBatch step({.num_decodes = 0, .num_prefills = 1, .prefill_tokens = prompt_tokens},
                   config_.block_size, model_.config().vocab_size);
  StepResult result;
  for (int i = 0; i < 2; ++i) {
    run(step.batch(), result);
    const int32_t token_id = result.token_ids[0];
    if (result.is_invalid[0] != 0) {
      throw DeviceError("self-test: the model computes NaN; are the weights damaged?", false);
    }
    if (token_id < 0 || token_id >= model_.config().vocab_size) {
      throw DeviceError("self-test: the sampled token is not in the vocabulary", false);
    }
    step.append_and_continue(token_id);
  }
}

}  // namespace octavo
