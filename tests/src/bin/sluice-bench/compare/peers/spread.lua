-- wrk without anything that steers: each thread goes to another node.
local number = 0
function setup(thread)
   number = number + 1
   local address = string.format("10.%d.0.1:8081", 9 + (number - 1) % 3 + 1)
   thread.addr = wrk.lookup(address:match("(.*):"), "8081")[1]
end
