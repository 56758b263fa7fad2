#!/usr/bin/env bash
# What a Prefect process worker on a login node runs for each flow run of the work pool "slurm": the run becomes a Slurm
# job, and this command ends as the job does. Cancelled in the UI, it cancels the job.
#   SPARSEFLEET_SBATCH: options of sbatch, as the pool's field "env" or the worker's environment gives them
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read -ra options <<<"${SPARSEFLEET_SBATCH:-}"
said=$(mktemp)
log=${SPARSEFLEET_LOGS:-$PWD}/slurm-%j.log

# The environment, and in it how to reach the Prefect server, goes with the job: never on a command line.
sbatch --parsable --wait --export=ALL --output="$log" "${options[@]}" "$here/flow.sbatch" "$@" >"$said" &
waiting=$!
cancelled=
# shellcheck disable=SC2329 # the trap calls it
cancel() {
  local job
  cancelled=yes
  job=$(cut -d ';' -f 1 "$said")
  if [[ -n $job ]]; then scancel "$job"; fi
}
trap cancel TERM INT
while true; do
  code=0
  wait "$waiting" || code=$?
  kill -0 "$waiting" 2>/dev/null || break
done
# Slurm may call a job that was cancelled as it began a success.
if [[ -n $cancelled && $code == 0 ]]; then code=143; fi
echo "Slurm job $(cut -d ';' -f 1 "$said") ended with code $code; its output: ${log/\%j/$(cut -d ';' -f 1 "$said")}"
rm -f "$said"
exit "$code"
