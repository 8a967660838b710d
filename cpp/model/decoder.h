// A stack of decoder layers between an embedding and a head: the loop that every architecture
// shares. An architecture derives from Decoder, declares its weights in its constructor and says
// what stands before and after attention.
#pragma once

#include <cstdint>
#include <string>

#include "model/layers.h"
#include "model/model.h"

namespace octavo {

class Decoder : public Model {
 public:
  using Model::Model;

  int64_t workspace_bytes(int64_t num_tokens) const override;
  TensorView forward(const ForwardInputs& inputs, KVCache& cache, Workspace& workspace) override;
  void compute_logits(TensorView hidden, TensorView logits) override;

 protected:
  // From the embedded tokens in x.residual to what the first layer takes.
  virtual void begin(Activations& x) = 0;
  // Queries, keys and values of a layer into x.qkv, not yet rotated.
  virtual void project_qkv(int64_t layer, Activations& x) = 0;
  // From x.attended to what the next layer takes; after the last one, the normalised hidden states
  // into x.normed.
  virtual void finish_layer(int64_t layer, Activations& x) = 0;
  // The residual's type. An architecture that projects the residual as it is says
  // activation_dtype(), the only type that projections take.
  virtual DType residual_dtype() const { return backend().residual_dtype(); }
  // The rotation of a layer.
  virtual const RopeTable& rope_of(int64_t /*layer*/) const { return rope(); }

  // "model.embed_tokens" before the layers, "model.norm" and "lm_head" after them.
  void declare_embedding();
  void declare_head();
  VectorId declare_norm(std::string name);
  VectorId final_norm() const { return final_norm_; }
  static std::string layer_name(int64_t layer) { return "model.layers." + std::to_string(layer); }

  // Steps of which layers are made. Where rows of the pass have adapters, projections add them.
  void project(LinearId weight, TensorView x, TensorView out);
  void norm(TensorView x, VectorId weight, TensorView out);
  // residual += delta; normed = norm(residual).
  void add_norm(VectorId weight, Activations& x);
  // Normalises q and k inside x.qkv, in runs of q_run and k_run elements.
  struct QkNormWeights {
    VectorId q;
    VectorId k;
    int64_t q_run;
    int64_t k_run;
  };
  void norm_qk(const QkNormWeights& norm, Activations& x);
  // delta = down(f(gate(input)) * up(input)).
  void run_gated_mlp(const GatedMlpWeights& mlp, TensorView input, Activations& x,
                     GatedFunction function = GatedFunction::kSilu);
  // delta = the mixture of experts on input.
  void run_experts(const ExpertWeights& experts, TensorView input, Activations& x);
  float eps() const { return static_cast<float>(config().rms_norm_eps); }

 private:
  Activations activations(Workspace& workspace, int64_t num_tokens) const;
  // The rows' adapters in the pass that begins; takes memory before the activations do.
  void begin_loras(const ForwardInputs& inputs, Workspace& workspace);
  // See Activations::keep_logits_rows.
  void keep_logits_rows(const ForwardInputs& inputs, Activations& x);
  // Null where no row of the pass has an adapter, or the weight is no target.
  const LoraBank* active_bank(LinearId weight) const;

  LoraPlan lora_plan_;  // of the pass; without memory when no row has an adapter
  LinearId embedding_;
  VectorId final_norm_;
  LinearId head_;
};

}  // namespace octavo
