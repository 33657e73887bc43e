using System.Runtime.CompilerServices;

namespace BlockServer.Core;

/// <summary>
/// A volume wherever it lies: what passes goes to the device of its present home, and <see cref="Switch"/> gives it another one
/// under the feet of those who use it. Lives on the volume's loop; owns no device.
/// </summary>
public sealed class HomeDevice(IBlockDevice home) : IBlockDevice
{
    private Home _home = new(home);
    private readonly List<Home> _left = [];

    /// <inheritdoc/>
    public ulong SizeBytes => _home.Device.SizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => _home.Device.IsReadOnly;

    /// <summary>From now on everything goes to <paramref name="device"/>, which has the same content. The caller holds changes
    /// back; whatever else is under way ends where it began.</summary>
    public void Switch(IBlockDevice device)
    {
        if (_home.InFlight > 0) _left.Add(_home);
        _home = new Home(device);
    }

    /// <summary>Answers when nothing is under way any more at a home that it has left.</summary>
    public async ValueTask DrainAsync()
    {
        foreach (Home left in _left.ToArray())
        {
            while (left.InFlight > 0)
            {
                var waiting = new LoopEvent<bool>();
                left.Waiting.Add(waiting);
                await waiting.WaitAsync();
            }

            _left.Remove(left);
        }
    }

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        Home home = _home;
        ValueTask<ReadResult> read = home.Device.ReadAsync(offsetBytes, target);
        return read.IsCompleted ? read : EndAsync(home, read);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) =>
        _home.Device.WriteAsync(offsetBytes, source, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync()
    {
        Home home = _home;
        return EndAsync(home, home.Device.FlushAsync());
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        _home.Device.TrimAsync(offsetBytes, lengthBytes, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        _home.Device.WriteZeroesAsync(offsetBytes, lengthBytes, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes)
    {
        Home home = _home;
        return EndAsync(home, home.Device.PrefetchAsync(offsetBytes, lengthBytes));
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs)
    {
        Home home = _home;
        return EndAsync(home, home.Device.MapAsync(offsetBytes, lengthBytes, runsMax, runs));
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<ReadResult> EndAsync(Home home, ValueTask<ReadResult> read)
    {
        home.InFlight++;
        ReadResult result = await read;
        home.Leave();
        return result;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<IoStatus> EndAsync(Home home, ValueTask<IoStatus> request)
    {
        home.InFlight++;
        IoStatus status = await request;
        home.Leave();
        return status;
    }

    private sealed class Home(IBlockDevice device)
    {
        public IBlockDevice Device { get; } = device;

        /// <summary>Requests that change nothing and are not answered yet; changes are held back at a switch.</summary>
        public int InFlight;

        public readonly List<LoopEvent<bool>> Waiting = [];

        public void Leave()
        {
            if (--InFlight > 0 || Waiting.Count == 0) return;
            LoopEvent<bool>[] waiting = [.. Waiting];
            Waiting.Clear();
            foreach (LoopEvent<bool> one in waiting) one.Set(true);
        }
    }
}
