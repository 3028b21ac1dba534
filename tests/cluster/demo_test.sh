#!/bin/bash
# demo.sh from its start of the training on: a repository with stand-ins for installing and building,
# and small made-up images in place of the real ones.
# shellcheck source-path=SCRIPTDIR source=support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"
demo="$work/a clone"
mkdir -p "$demo/build/release" "$demo/cmake" "$demo/trainer"
cp -r "$repository/demo.sh" "$repository/cluster" "$demo"
cp -r "$repository/trainer/recipes" "$demo/trainer"
ln -s "$CONVOY" "$demo/build/release/convoy"
for script in install_packages build_release; do
  printf '#!/bin/bash\n' >"$demo/cmake/$script.sh"
  chmod +x "$demo/cmake/$script.sh"
done
unset CONVOY
cd "$work" || exit 1
small=(--set data.format=SYNTHETIC --set data.synthetic_samples=256 --set data.classes=10
  --set data.train.size=8 --set log.every_steps=1)

"$demo/demo.sh" "${small[@]}" --set epochs=1 >out 2>errors </dev/null
expect "exit code" $? 0
sed 's/^/  | /' out
check "the last line but one is the accuracy" grep -qE 'top-1.*[0-9] %|[0-9] %.*top-1' <(tail -n 2 out | head -n 1)
run=$(tail -n 1 out | sed -n 's/^run: //p')
check "the last line is the run" test -d "$run"
check "the run is in the repository" test "$(dirname "$run")" = "$demo/runs"
check "it has a whole checkpoint" "$demo/build/release/convoy" verify "$run"
check "times are told apart" grep -qE '^install: [0-9]+ s, build: [0-9]+ s$' out

"$demo/demo.sh" "${small[@]}" --set epochs=1000000 --set evaluation.every_epochs=0 >out 2>errors </dev/null &
trainer=$!
first_run=$run
trained() {
  run=$(find "$demo/runs" -mindepth 1 -maxdepth 1 ! -path "$first_run")
  contains "$run/metrics.jsonl" '"train_loss"' >/dev/null
}
wait_for trained
kill -TERM "$trainer"
wait "$trainer"
expect "exit code after TERM" $? 75
run=$(tail -n 1 out | sed -n 's/^run: //p')
check "the interrupted run has a whole checkpoint" "$demo/build/release/convoy" verify "$run"
check "the way to go on is shown" contains errors "to go on: "
eval "$(sed -n 's/^to go on: //p' errors) --set stop_after_steps=1" >out 2>&1
expect "exit code of going on" $? 0
check "going on resumes" contains out "resumed at step"
check "nobody is left" nobody_left "$run"

finish
