using System.Runtime.CompilerServices;
using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

public class LoopMethodBuilderTests
{
    [Fact]
    public void Sixty_four_methods_in_flight_allocate_nothing_once_warm()
    {
#if !DEBUG
        var operations = new LoopOperation<int>[64];
        for (int i = 0; i < operations.Length; i++) operations[i] = new LoopOperation<int>();
        var sums = new Sum[64];
        for (int i = 0; i < sums.Length; i++) sums[i] = new Sum();
        // The compiler may come back to what is warm and allocate once more: one stretch without it is what counts.
        int rounds = 0;
        long allocated = 1;
        for (int stretch = 0; stretch < 10 && allocated != 0; stretch++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int round = 0; round < 1000; round++) Round(operations, sums);
            allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            rounds += 1000;
        }

        Assert.Equal(0, allocated);
        Assert.All(sums, s => Assert.Equal(2 * rounds, s.Value));
#endif
    }

    [Fact]
    public async Task An_exception_reaches_the_awaiter()
    {
        var operation = new LoopOperation<int>();
        ValueTask<int> task = Throwing(operation);
        operation.Complete(1);
        await Assert.ThrowsAsync<InvalidOperationException>(async () => await task);
    }

    [Fact]
    public async Task A_second_await_throws_and_gives_nothing_back()
    {
        var operation = new LoopOperation<int>();
        ValueTask<int> task = Inner(operation);
        ValueTask<int> copy = task;
        operation.Complete(7);
        Assert.Equal(7, await task);

        var other = new LoopOperation<int>();
        ValueTask<int> running = Inner(other); // on the machine that was given back
        Assert.Throws<InvalidOperationException>(() => copy.GetAwaiter().GetResult());
        ValueTask<int> third = Inner(new LoopOperation<int>()); // would take the machine of the running one
        other.Complete(8);
        Assert.Equal(8, await running);
        Assert.False(third.IsCompleted);
    }

    [Fact]
    public async Task A_result_taken_too_early_gives_nothing_back()
    {
        var operation = new LoopOperation<int>();
        ValueTask<int> task = Inner(operation);
        ValueTask<int> copy = task;
        Assert.Throws<System.Diagnostics.UnreachableException>(() => copy.GetAwaiter().GetResult());
        operation.Complete(9);
        Assert.Equal(9, await task);
    }

    private static void Round(LoopOperation<int>[] operations, Sum[] sums)
    {
        for (int i = 0; i < operations.Length; i++) sums[i].Begin(Outer(operations[i]));
        for (int i = 0; i < operations.Length; i++) operations[i].Complete(1);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<int> Outer(LoopOperation<int> operation) => await Inner(operation) + 1;

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<int> Inner(LoopOperation<int> operation) => await operation.Begin();

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<int> Throwing(LoopOperation<int> operation)
    {
        await operation.Begin();
        throw new InvalidOperationException();
    }

    private sealed class Sum
    {
        private readonly Action _finish;
        private ValueTaskAwaiter<int> _awaiter;

        public Sum() => _finish = () => Value += _awaiter.GetResult();

        public int Value { get; private set; }

        public void Begin(ValueTask<int> task)
        {
            _awaiter = task.GetAwaiter();
            _awaiter.UnsafeOnCompleted(_finish);
        }
    }
}
