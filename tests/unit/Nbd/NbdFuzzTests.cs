using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>Random mutations of golden sessions: the session never throws and frees everything, others are not disturbed.</summary>
public class NbdFuzzTests
{
    private const ulong SeedsPerRun = 400;

    [Fact]
    public void Mutated_sessions_never_throw_leak_or_disturb_another()
    {
        // BLOCKSERVER_NBD_FUZZ_SEED replays one seed.
        string? only = Environment.GetEnvironmentVariable("BLOCKSERVER_NBD_FUZZ_SEED");
        if (ulong.TryParse(only, out ulong one))
        {
            RunSeed(one);
            return;
        }

        for (ulong seed = 1; seed <= SeedsPerRun; seed++)
        {
            Exception? failure = Record.Exception(() => RunSeed(seed));
            if (failure is not null) Assert.Fail($"seed {seed}: {failure}");
        }
    }

    private static void RunSeed(ulong seed)
    {
        var dice = new SeededRandom(seed);
        var world = new NbdWorld(seed);
        NbdWorld other = new NbdWorld(loop: world.Loop, device: world.Device).Enter();
        byte[] bytes = Golden((NbdReplyMode)dice.NextBelow(3));
        for (int i = 1 + dice.NextBelow(4); i > 0; i--) bytes = Mutate(bytes, dice);

        var batch = new SendBatch();
        batch.Add(bytes);
        ValueTask<int> send = world.Client.SendAsync(batch);
        Task<int> sending = send.AsTask();
        var sink = new byte[65536];
        Task<int> reading = Task.FromResult(1);
        bool closed = false;
        Check.That(world.Loop.RunUntil(() =>
        {
            if (reading.IsCompleted && reading.Result > 0) reading = world.Client.ReceiveAsync(sink).AsTask();
            if (!closed && sending.IsCompleted)
            {
                closed = true;
                world.Client.ShutdownSend();
            }

            return world.HasEnded;
        }));
        Check.That(world.End().Length > 0);
        byte[] data = Pattern(5000, (int)seed);
        Check.That(other.Write(40 << 20, data) == NbdError.None);
        Check.That(other.Read(40 << 20, 5000).AsSpan().SequenceEqual(data));
        Check.That(world.Loop.Buffers.LentCount == 0);
    }

    private static byte[] Golden(NbdReplyMode mode)
    {
        var world = new NbdWorld { Mode = mode };
        byte[] wish = Join(Text("disk"), U16(2), U16(1), U16(3));
        return Join(
            U32(3),
            OptionBytes(NbdOption.List),
            mode == NbdReplyMode.Simple ? [] : OptionBytes(mode == NbdReplyMode.Extended ? NbdOption.ExtendedHeaders : NbdOption.StructuredReply),
            OptionBytes(NbdOption.SetMetaContext, Text("disk"), U32(1), Text("base:allocation")),
            OptionBytes(NbdOption.Info, wish),
            OptionBytes(NbdOption.Go, wish),
            world.RequestBytes(NbdCommand.Write, 1, 4096, 4096, 0, new byte[4096]),
            world.RequestBytes(NbdCommand.Read, 2, 0, 16384),
            world.RequestBytes(NbdCommand.BlockStatus, 3, 0, 65536),
            world.RequestBytes(NbdCommand.Trim, 4, 0, 8192),
            world.RequestBytes(NbdCommand.WriteZeroes, 5, 100, 9000, NbdCommandFlags.NoHole),
            world.RequestBytes(NbdCommand.Cache, 6, 0, 4096),
            world.RequestBytes(NbdCommand.Flush, 7, 0, 0),
            world.RequestBytes(NbdCommand.Write, 8, 512, 100, NbdCommandFlags.Fua, new byte[100]),
            world.RequestBytes(NbdCommand.Disconnect, 9, 0, 0));
    }

    private static byte[] Mutate(byte[] source, SeededRandom dice)
    {
        byte[] bytes = [.. source];
        int at = dice.NextBelow(bytes.Length);
        switch (dice.NextBelow(6))
        {
            case 0:
                bytes[at] ^= (byte)(1 << dice.NextBelow(8));
                return bytes;
            case 1:
                bytes[at] = dice.NextChance(0.5) ? (byte)0xFF : (byte)dice.NextBelow(256);
                return bytes;
            case 2:
                return at == 0 ? bytes : bytes[..at];
            case 3:
                return Join(bytes[..at], bytes[Math.Min(bytes.Length, at + 1 + dice.NextBelow(40))..], [0]);
            case 4:
                return Join(bytes[..at], Pattern(1 + dice.NextBelow(64), dice.NextBelow(1000)), bytes[at..]);
            default:
                int from = dice.NextBelow(bytes.Length);
                return Join(bytes[..at], bytes[from..]);
        }
    }
}
