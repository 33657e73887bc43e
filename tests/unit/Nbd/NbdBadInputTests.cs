using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>Everything a peer may do wrong, each with the reaction that is promised: <c>close: why</c>, or what is answered
/// while the session lives on.</summary>
public class NbdBadInputTests
{
    private const ulong Size = 64 << 20;

    private static readonly NbdOptions s_tls = new() { TlsMode = NbdTlsMode.Required, Tls = new SameTls() };

    private static readonly Dictionary<string, (string Reaction, Func<string> Do)> s_table = new()
    {
        ["unknown client flags"] = ("close: unknown client flags", () =>
        {
            var world = new NbdWorld();
            world.Greet(flags: 0x80000003);
            return Close(world);
        }),
        ["wrong option magic"] = ("close: wrong option magic", () => Raw(new byte[16])),
        ["option of more than 64 KiB"] = ("close: an option is too long", () => Raw("IHAVEOPT"u8.ToArray(), U32(7), U32(65537))),
        ["option of 4 GiB less one"] = ("close: an option is too long", () => Raw("IHAVEOPT"u8.ToArray(), U32(1), U32(uint.MaxValue))),
        ["name of more than 4096 bytes"] = ("ErrTooBig", () => Option(NbdOption.Go, Text(new string('x', 4097)), U16(0))),
        ["name of 4 GiB less one in a short option"] = ("ErrInvalid", () => Option(NbdOption.Go, U32(uint.MaxValue), U16(0))),
        ["name that is not UTF-8"] = ("ErrInvalid", () => Option(NbdOption.Info, U32(2), [0xC3, 0x28], U16(0))),
        ["name with a NUL"] = ("ErrInvalid", () => Option(NbdOption.Info, Text("disk\0x"), U16(0))),
        ["known option of 60,000 bytes"] = ("ErrTooBig", () => Option(NbdOption.SetMetaContext, new byte[60_000])),
        ["unknown option"] = ("ErrUnsup", () => Option((NbdOption)4711)),
        ["unknown option of 65,536 bytes"] = ("ErrUnsup", () => Option((NbdOption)4711, new byte[65_536])),
        ["name by the old way of 60,000 bytes"] = ("close: bad export name", () => Raw(OptionBytes(NbdOption.ExportName, new byte[60_000]))),
        ["name by the old way that is unknown"] = ("close: unknown export", () => Raw(OptionBytes(NbdOption.ExportName, "no"u8.ToArray()))),
        ["33 options"] = ("close: too many options", () => Raw([.. Enumerable.Range(0, 33).Select(_ => OptionBytes(NbdOption.List))])),
        ["a byte a second"] = ("close: the handshake took too long", () =>
        {
            var world = new NbdWorld();
            world.Greet();
            byte[] option = OptionBytes(NbdOption.Go, Text("disk"), U16(0));
            for (int i = 0; i < option.Length && !world.HasEnded; i++)
            {
                world.Client.SendAsync(BatchOf([option[i]]));
                ulong until = world.Loop.NowNanos + 1_000_000_000;
                world.Loop.Schedule(1_000_000_000, () => { });
                world.Loop.RunUntil(() => world.Loop.NowNanos >= until);
            }

            return Close(world);
        }),
        ["option before the TLS that is required"] = ("ErrTlsReqd", () => Option(new NbdWorld(options: s_tls), NbdOption.Go, Text("disk"), U16(0))),
        ["unknown option before the TLS that is required"] = ("ErrTlsReqd", () => Option(new NbdWorld(options: s_tls), (NbdOption)99, new byte[60_000])),
        ["name by the old way before the TLS that is required"] = ("close: TLS is required", () =>
            Raw(new NbdWorld(options: s_tls), OptionBytes(NbdOption.ExportName, "disk"u8.ToArray()))),
        ["abort before the TLS that is required"] = ("close: the client aborted", () => Raw(new NbdWorld(options: s_tls), OptionBytes(NbdOption.Abort))),
        ["option sent ahead of TLS"] = ("close: data was sent ahead of TLS", () =>
        {
            // How many bytes a receive takes is drawn: look for a draw that takes both options at once.
            for (ulong seed = 1; seed < 100; seed++)
            {
                var world = new NbdWorld(seed, s_tls);
                world.Greet();
                world.Send(OptionBytes(NbdOption.StartTls), OptionBytes(NbdOption.List));
                world.Loop.RunUntil(() => world.HasEnded, 300);
                if (world.HasEnded) return Close(world);
            }

            return "never refused";
        }),
        ["TLS handshake that stalls"] = ("close: the handshake took too long", () =>
        {
            var world = new NbdWorld(options: new NbdOptions { TlsMode = NbdTlsMode.Optional, Tls = new WaitingTls() });
            world.Greet();
            Check.That(world.Option(NbdOption.StartTls)[0].Type == NbdReply.Ack);
            return Close(world);
        }),
        ["list by a client that may use nothing"] = ("Ack", () =>
        {
            var world = new NbdWorld(options: s_tls) { MayUse = identity => identity == "CN=other" };
            world.Greet();
            world.Option(NbdOption.StartTls);
            return Assert.Single(world.Option(NbdOption.List)).Type.ToString();
        }),
        ["export that the client may not use"] = ("ErrUnknown", () =>
        {
            var world = new NbdWorld(options: s_tls) { MayUse = identity => identity == "CN=other" };
            world.Greet();
            world.Option(NbdOption.StartTls);
            return world.Option(NbdOption.Go, Text("disk"), U16(0))[^1].Type.ToString();
        }),
        ["wrong request magic"] = ("close: wrong request magic", () => Sent(new byte[28])),
        ["request of length 0"] = ("None", () => Asked(NbdCommand.Read, 0, 0)),
        ["block status of length 0"] = ("Invalid", () => Asked(NbdCommand.BlockStatus, 0, 0)),
        ["read of more than 32 MiB"] = ("Invalid", () => Asked(NbdCommand.Read, 0, (32 << 20) + 1)),
        ["write of more than 32 MiB"] = ("Invalid", () => Asked(NbdCommand.Write, 0, (32 << 20) + 1, 0, new byte[(32 << 20) + 1])),
        ["write of more than 64 MiB"] = ("close: a payload is too large", () =>
            Sent(new NbdWorld().RequestBytes(NbdCommand.Write, 1, 0, (64 << 20) + 1))),
        ["read past the end"] = ("Invalid", () => Asked(NbdCommand.Read, Size - 1, 2)),
        ["read whose end overflows"] = ("Invalid", () => Asked(NbdCommand.Read, ulong.MaxValue - 10, 4096)),
        ["write past the end"] = ("NoSpace", () => Asked(NbdCommand.Write, Size - 1, 2, 0, new byte[2])),
        ["write whose end overflows"] = ("NoSpace", () => Asked(NbdCommand.Write, ulong.MaxValue - 10, 4096, 0, new byte[4096])),
        ["unknown command"] = ("Invalid", () => Asked((NbdCommand)8, 0, 0)),
        ["unknown flag"] = ("Invalid", () => Asked(NbdCommand.Read, 0, 512, (NbdCommandFlags)0x40)),
        ["flush with a length"] = ("Invalid", () => Asked(NbdCommand.Flush, 0, 512)),
        ["flush with an offset"] = ("Invalid", () => Asked(NbdCommand.Flush, 512, 0)),
        ["write to a read-only export"] = ("Perm", () => Asked(new NbdWorld { IsReadOnly = true }, NbdCommand.Write, 0, 512, 0, new byte[512])),
        ["one cookie for two requests"] = ("None None", () =>
        {
            NbdWorld world = new NbdWorld().Enter();
            byte[] read = world.RequestBytes(NbdCommand.Read, 5, 0, 512);
            world.Send(read, read);
            return $"{world.Answer(5, 512)} {world.Answer(5, 512)}";
        }),
        ["100 requests at once"] = ("64", () => MostInFlight(100, 512)),
        ["40 MiB of requests at once"] = ("16", () => MostInFlight(40, 1 << 20)),
        ["nothing is read"] = ("close: the client does not read", () =>
        {
            NbdWorld world = new NbdWorld().Enter();
            for (ulong i = 0; i < 20; i++)
            {
                world.Client.SendAsync(BatchOf(world.RequestBytes(NbdCommand.Read, i, 0, 1 << 20)));
                world.Loop.RunUntil(() => false, 100);
            }

            return Close(world);
        }),
        ["half a header and silence"] = ("close: half a request, then silence", () => Sent(new NbdWorld().RequestBytes(NbdCommand.Read, 1, 0, 512)[..20])),
        ["half a payload and silence"] = ("close: half a request, then silence", () =>
            Sent(new NbdWorld().RequestBytes(NbdCommand.Write, 1, 0, 65536, 0, new byte[65536])[..40_000])),
        ["half a refused payload and silence"] = ("close: half a request, then silence", () =>
            Sent(new NbdWorld().RequestBytes(NbdCommand.Write, 1, Size, 65536, 0, new byte[65536])[..40_000])),
    };

    public static TheoryData<string> Names => [.. s_table.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void Gets_its_reaction(string name)
    {
        (string reaction, Func<string> act) = s_table[name];
        Assert.Equal(reaction, act());
    }

    private static string Close(NbdWorld world)
    {
        string reason = world.End();
        Assert.Equal(0, world.Loop.Buffers.LentCount);
        return "close: " + reason;
    }

    private static string Raw(params byte[][] bytes) => Raw(new NbdWorld(), bytes);

    private static string Raw(NbdWorld world, params byte[][] bytes)
    {
        world.Greet();
        world.Client.SendAsync(BatchOf(Join(bytes)));
        return Close(world);
    }

    private static string Option(NbdOption option, params byte[][] data) => Option(new NbdWorld(), option, data);

    private static string Option(NbdWorld world, NbdOption option, params byte[][] data)
    {
        world.Greet();
        string answer = Assert.Single(world.Option(option, data)).Type.ToString();
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.Abort)[0].Type); // in step
        return answer;
    }

    private static string Sent(byte[] bytes)
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Client.SendAsync(BatchOf(bytes));
        return Close(world);
    }

    private static string Asked(NbdCommand command, ulong offset, ulong length, NbdCommandFlags flags = 0, byte[]? payload = null) =>
        Asked(new NbdWorld(), command, offset, length, flags, payload);

    private static string Asked(NbdWorld world, NbdCommand command, ulong offset, ulong length, NbdCommandFlags flags, byte[]? payload)
    {
        world.Enter(NbdReplyMode.Structured, context: true);
        string answer = world.Ask(command, offset, length, flags, payload).ToString();
        Assert.Equal(new byte[512], world.Read(0, 512)); // in step, and nothing was changed
        return answer;
    }

    private static string MostInFlight(int count, int bytes)
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Device.IsStuck = true;
        world.Send([.. Enumerable.Range(0, count).Select(i => world.RequestBytes(NbdCommand.Read, (ulong)i, 0, (ulong)bytes))]);
        world.Loop.RunUntil(() => false, 5000);
        return world.Device.InFlight.ToString(System.Globalization.CultureInfo.InvariantCulture);
    }

    private static SendBatch BatchOf(byte[] bytes)
    {
        var batch = new SendBatch();
        batch.Add(bytes);
        return batch;
    }

    private sealed class SameTls : ITlsUpgrade
    {
        public ValueTask<TlsResult> UpgradeAsync(IConnection plain) => new(new TlsResult(plain, "CN=client", null));
    }

    /// <summary>A handshake that waits for its client.</summary>
    private sealed class WaitingTls : ITlsUpgrade
    {
        public async ValueTask<TlsResult> UpgradeAsync(IConnection plain) =>
            new(null, null, "received " + await plain.ReceiveAsync(new byte[16]));
    }
}
