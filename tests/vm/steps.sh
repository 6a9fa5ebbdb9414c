# shellcheck shell=dash
# steps.sh: what the two halves of the proof share, ours and the guest's.

ERRNOS='file exists|invalid argument|no data available|device or resource busy|operation not supported'
failed=0

# step NAME COMMAND...: one line when the command succeeds, else all it said.
step() {
	name=$1 start=$(date +%s)
	shift
	set +e
	(set -eu; "$@") >"$T/log" 2>&1
	rc=$?
	set -e
	if [ $rc = 0 ]; then
		echo "ok      $name ($(($(date +%s) - start)) s)"
	else
		failed=$((failed + 1))
		echo "FAILED  $name: exit status $rc"
		sed 's/^/        /' "$T/log"
	fi
}

# same WHAT EXPECTED GOT
same() {
	[ "$2" = "$3" ] && return
	printf '%s: expected\n%s\ngot\n%s\n' "$1" "$2" "$3"
	return 1
}

# converse FILE says the lines of FILE to a pool and prints what it answers.
# Most lines are messages; the others are carried out by do_new, do_status,
# do_fill and do_readonly. Of a status line, the numbers that are each
# implementation's own become letters: what metadata takes and where it is.
converse() {
	grep -v '^#' "$1" | while read -r verb rest; do
		case $verb in
		new | fill | readonly) answer= && "do_$verb" "$rest" ;;
		status) answer=$(do_status | awk '{$5 = "M/M"; $NF = "L"} $7 != "-" {$7 = "H"} {print}') ;;
		*)
			if answer=$(do_message "$verb${rest:+ $rest}" 2>&1); then
				answer=ok
			else
				errno=$(echo "$answer" | tr '[:upper:]' '[:lower:]' | grep -oE "$ERRNOS" | head -n 1)
				answer=${errno:-$answer}
			fi
			;;
		esac
		echo "$verb $rest -> $answer"
	done
}
