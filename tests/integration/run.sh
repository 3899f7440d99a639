#!/usr/bin/env bash
# nnU-Net's integration test with nnUNetTrainerDVCL: plan, preprocess, train all folds of 2d, 3d_fullres, 3d_lowres and
# the cascade, choose the best, predict, ensemble, postprocess. Not part of the quick tests: docs/reference/integration.md
#
#   NNUNET_DVCL_HIPPOCAMPUS=.../Dataset004_Hippocampus tests/integration/run.sh FOLDER [CASES [DATASET ...]]
#
# FOLDER    for nnU-Net's three folders, predictions and logs: a new one, or that of a run that was stopped
# CASES     number of cases; default all 260
# DATASET   of 996 997 998 999; default all
# DEVICE (cpu), EPOCHS (2) and ITERATIONS (2) may be set in the environment.
set -euo pipefail

: "${NNUNET_DVCL_HIPPOCAMPUS:?has to name the folder Dataset004_Hippocampus}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "${1:?usage: run.sh FOLDER [CASES [DATASET ...]]}" && cd "$1" && pwd)
cases=${2:-all}
datasets=("${@:3}")
[ ${#datasets[@]} -gt 0 ] || datasets=(999 998 997 996)

device=${DEVICE:-cpu} trainer=nnUNetTrainerDVCL
configurations=(2d_small 3d_fullres_small 3d_lowres_small 3d_cascade_small)
export nnUNet_raw=$out/raw nnUNet_preprocessed=$out/preprocessed nnUNet_results=$out/results
export nnUNet_compile=f nnUNet_def_n_proc=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results" "$out/logs"

# step NAME COMMAND ...: runs the command, logs its output, notes how long it took; what is done is not done again
step() {
    local name=$1 log=$out/logs/${dataset}_$1.txt start=$SECONDS
    shift
    [ ! -e "$log.done" ] || return 0
    if ! "$@" > "$log" 2>&1; then
        tail -n 30 "$log"
        echo "$dataset $name FAILED: $*"
        exit 1
    fi
    touch "$log.done"
    echo "$dataset,$name,$((SECONDS - start))" | tee -a "$out/seconds.csv"
}

there() {
    local file
    for file in "$@"; do
        [ -s "$file" ] || { echo "$dataset: $file is missing or empty"; return 1; }
    done
}

# as many predictions as there are test cases
all_predicted() {
    local number
    number=$(find "$1" -maxdepth 1 -name "*.nii.gz" | wc -l)
    [ "$number" -eq "$(find "$raw/imagesTs" -name "*.nii.gz" | wc -l)" ] || { echo "$dataset: $number in $1"; return 1; }
}

# configure NAME PARENT DIMENSIONS KEY=VALUE ...: a small network, a short training
configure() {
    local name=$1 parent=$2 one two three
    one=$(printf '1,%.0s' $(seq "$3")) two=$(printf '2,%.0s' $(seq "$3")) three=$(printf '3,%.0s' $(seq "$3"))
    one=[${one%,}] two=[${two%,}] three=[${three%,}]
    shift 3
    nnunet_dvcl configure -d "$dataset" -c "$parent" --name "$name" batch_size=2 "$@" \
        architecture.arch_kwargs.n_stages=3 \
        "architecture.arch_kwargs.features_per_stage=[4,8,16]" \
        "architecture.arch_kwargs.strides=[$one,$two,$two]" \
        "architecture.arch_kwargs.kernel_sizes=[$three,$three,$three]" \
        "architecture.arch_kwargs.n_conv_per_stage=[1,1,1]" \
        "architecture.arch_kwargs.n_conv_per_stage_decoder=[1,1]" \
        "ssl.num_epochs=${EPOCHS:-2}" "ssl.num_iterations_per_epoch=${ITERATIONS:-2}" \
        ssl.num_val_iterations_per_epoch=1 ssl.seed=0 ssl.feature_dim=8 ssl.num_anchors=16 ssl.num_negatives=32 \
        ssl.bank_capacity=64 ssl.num_queries=32 ssl.queue_capacity=128 ssl.outlier_neighbors=20 \
        ssl.validation_voxels=512
}

# of the predictions that the first stage has made for the second, the command makes one again
predict_a_removed_one() {
    local predicted
    predicted=$(find "$model/fold_0/predicted_next_stage/3d_cascade_small" -name "*.b2nd" | sort | tail -n 1)
    rm "$predicted"
    nnunet_dvcl predict-next-stage -d "$dataset" -c 3d_lowres_small -f 0 -tr $trainer -device "$device"
    there "$predicted"
}

# best KEY: what nnUNetv2_find_best_configuration has found
best() {
    python - "$results/inference_information.json" "$1" << 'PYTHON'
import json, sys
best = json.load(open(sys.argv[1]))["best_model_or_ensemble"]
models = [model["configuration"] for model in best["selected_model_or_models"]]
print(*(models if sys.argv[2] == "configurations" else [best[sys.argv[2]]]))
PYTHON
}

run() {
    local configuration fold options chosen plans
    step make python "$here/make_dataset.py" "$dataset" $([ "$cases" = all ] || echo "-n $cases")
    raw=$(echo "$nnUNet_raw/Dataset${dataset}"_*)
    results=$nnUNet_results/$(basename "$raw")

    export nnUNet_n_proc_DA=1
    step plan_and_preprocess nnUNetv2_plan_and_preprocess -d "$dataset" -c 2d 3d_fullres -np 1 1 -npfp 1 \
        --verify_dataset_integrity
    step configure_2d configure 2d_small 2d 2
    step configure_3d configure 3d_fullres_small 3d_fullres 3
    step configure_lowres configure 3d_lowres_small 3d_fullres 3 "spacing=[2.0,2.0,2.0]" "patch_size=[20,28,20]" \
        data_identifier=nnUNetPlans_3d_lowres_small next_stage=3d_cascade_small
    step configure_cascade configure 3d_cascade_small 3d_fullres 3 previous_stage=3d_lowres_small
    step preprocess_lowres nnUNetv2_preprocess -d "$dataset" -c 3d_lowres_small -np 1

    export nnUNet_n_proc_DA=0
    for configuration in "${configurations[@]}"; do
        model=$results/${trainer}__nnUNetPlans__$configuration
        for fold in 0 1 2 3 4; do
            step "train_${configuration}_$fold" \
                nnUNetv2_train "$dataset" "$configuration" "$fold" -tr $trainer --npz -device "$device"
            there "$model/fold_$fold"/{checkpoint_final.pth,validation/summary.json,progress.png,progress_ssl.png}
        done
        [ "$configuration" != 3d_lowres_small ] || step predict_next_stage predict_a_removed_one
    done

    step find_best_configuration \
        nnUNetv2_find_best_configuration "$dataset" -c "${configurations[@]}" -tr $trainer -np 1
    there "$results"/{inference_instructions.txt,inference_information.json}

    # two of the folds, to be done sooner
    for configuration in "${configurations[@]}"; do
        options=(-d "$dataset" -c "$configuration" -tr $trainer -f 0 3 -device "$device" -npp 1 -nps 1)
        [ "$configuration" != 3d_cascade_small ] || options+=(-prev_stage_predictions "$out/$dataset/3d_lowres_small")
        step "predict_$configuration" nnUNetv2_predict -i "$raw/imagesTs" -o "$out/$dataset/$configuration" \
            --save_probabilities "${options[@]}"
        all_predicted "$out/$dataset/$configuration"
    done
    read -ra chosen <<< "$(best configurations)"
    [ ${#chosen[@]} -eq 2 ] || chosen=(2d_small 3d_fullres_small)
    step ensemble nnUNetv2_ensemble -i "${chosen[@]/#/$out/$dataset/}" -o "$out/$dataset/ensemble" -np 1
    all_predicted "$out/$dataset/ensemble"
    # the postprocessing of the best, a configuration or an ensemble
    read -ra chosen <<< "$(best configurations)"
    [ ${#chosen[@]} -eq 1 ] || chosen=(ensemble)
    plans=$(best some_plans_file)
    step apply_postprocessing nnUNetv2_apply_postprocessing -i "$out/$dataset/${chosen[0]}" \
        -o "$out/$dataset/postprocessed" -pp_pkl_file "$(best postprocessing_file)" \
        -plans_json "$plans" -dataset_json "$(dirname "$plans")/dataset.json" -np 1
    all_predicted "$out/$dataset/postprocessed"
}

for dataset in "${datasets[@]}"; do
    start=$SECONDS
    run
    echo "$dataset: everything is there, after $((SECONDS - start)) s"
done
