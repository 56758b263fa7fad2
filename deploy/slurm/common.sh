# shellcheck shell=bash
# What the batch scripts share: words for array tasks, and giving a job back to the queue before its time ends.

# The same words on every task of an array, with {task} for its number.
own_words() {
  words=()
  local word
  for word in "$@"; do
    words+=("${word//\{task\}/${SLURM_ARRAY_TASK_ID:-0}}")
  done
}

# This task alone, also where it is one of an array (whose first task's number is the whole array's, too).
own_job() {
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
  else
    echo "$SLURM_JOB_ID"
  fi
}

# Run a command, and hand it on what Slurm signals. USR1 comes before the time limit or a pre-emption: the command ends
# as on Ctrl-C, its last commit stays, and the same job, back in the queue, goes on from there.
run_until_told() {
  local requeue='' code=0
  "$@" &
  local pid=$!
  trap 'requeue=yes; kill -TERM "$pid" 2>/dev/null || true' USR1
  trap 'kill -TERM "$pid" 2>/dev/null || true' TERM INT
  while true; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  trap - USR1 TERM INT
  if [[ -n $requeue && $code -ne 0 ]]; then
    echo "told to make room: $(own_job) goes back to the queue"
    scontrol requeue "$(own_job)"
    # Slurm ends this script; nothing may come after.
    sleep 60
  fi
  return "$code"
}
