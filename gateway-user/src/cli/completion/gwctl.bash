# bash completion for gwctl: gwctl itself knows what may come next.
_gwctl() {
    local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} words=()
    # Bash would split addresses and ports at the colon.
    IFS=$' \t' read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local current=${words[-1]} prefix=""
    [[ $current == *:* && $COMP_WORDBREAKS == *:* ]] && prefix=${current%"${current##*:}"}
    COMPREPLY=($(gwctl __complete "${words[@]:1}" 2>/dev/null | cut -f1))
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
complete -F _gwctl gwctl
