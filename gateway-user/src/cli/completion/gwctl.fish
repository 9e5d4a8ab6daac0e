# fish completion for gwctl: gwctl itself knows what may come next.
function __gwctl_complete
    set -l words (commandline -opc) (commandline -ct)
    gwctl __complete $words[2..-1] 2>/dev/null
end
complete -c gwctl -f -a '(__gwctl_complete)'
