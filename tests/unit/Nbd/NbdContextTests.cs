using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>Metadata contexts besides base:allocation: listed, chosen, answered beside each other.</summary>
public sealed class NbdContextTests
{
    [Fact]
    public void They_are_listed_by_namespace_by_prefix_and_by_name()
    {
        NbdWorld world = World();
        Assert.Equal(["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"], Names(world, NbdOption.ListMetaContext));
        Assert.Equal(["qemu:allocation-depth", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"], Names(world, NbdOption.ListMetaContext, "qemu:"));
        Assert.Equal(["qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"], Names(world, NbdOption.ListMetaContext, "qemu:dirty-bitmap:"));
        Assert.Equal(["base:allocation", "qemu:dirty-bitmap:b"], Names(world, NbdOption.ListMetaContext, "qemu:dirty-bitmap:b", "base:", "qemu:dirty-bitmap:b"));
        Assert.Empty(Names(world, NbdOption.ListMetaContext, "qemu:dirty-bitmap:c", "qemu", "other:", ""));
        Assert.Empty(Names(world, NbdOption.SetMetaContext, "qemu:", "qemu:dirty-bitmap:", "base:"));
        Assert.Empty(Names(world, NbdOption.SetMetaContext));
    }

    [Fact]
    public void A_query_that_is_no_text_matches_nothing()
    {
        NbdWorld world = World();
        List<(NbdReply Type, byte[] Data)> replies = world.Option(NbdOption.ListMetaContext, Text("disk"), U32(2), Join(U32(2), [0xFF, 0xFE]), Text("base:allocation"));
        Assert.Equal(2, replies.Count);
        Assert.Equal(NbdReply.Ack, replies[^1].Type);
    }

    [Fact]
    public void More_than_a_payload_can_name_are_not_chosen_at_a_time()
    {
        var contexts = new Many(60);
        NbdWorld world = World(contexts);
        Assert.Equal(62, Names(world, NbdOption.ListMetaContext).Count);
        byte[][] queries = [.. Enumerable.Range(0, 60).Select(i => Text($"qemu:dirty-bitmap:s{i}"))];
        Assert.Equal(NbdReply.ErrTooBig, world.Option(NbdOption.SetMetaContext, [Text("disk"), U32(60), .. queries])[^1].Type);
        Assert.Equal(47, world.Option(NbdOption.SetMetaContext, [Text("disk"), U32(46), .. queries[..46]]).Count);
        world.Mode = NbdReplyMode.Extended;
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.ExtendedHeaders)[0].Type);
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.Go, Text("disk"), U16(0))[^1].Type);
        byte[] all = Join(U64(1 << 20), Join([.. Enumerable.Range(1, 46).Select(i => U32((uint)i))]));
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 0, (ulong)all.Length, 0, all, chunks));
        Assert.Equal(46, chunks.Count);
        Assert.All(chunks, c => Assert.True(c.Data.Length <= 8 + 16 * (4000 / 46)));
    }

    [Theory]
    [InlineData(NbdReplyMode.Structured)]
    [InlineData(NbdReplyMode.Extended)]
    public void Each_chosen_one_answers_in_a_chunk_of_its_own(NbdReplyMode mode)
    {
        NbdWorld world = World(null, mode);
        Assert.Equal(["base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"],
            Names(world, NbdOption.SetMetaContext, "qemu:dirty-bitmap:b", "base:allocation", "qemu:dirty-bitmap:a"));
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.Go, Text("disk"), U16(0))[^1].Type);
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 4096, 12288, 0, null, chunks));
        string[] wanted = mode == NbdReplyMode.Structured
            ? ["00000001" + "0000300000000003", "00000002" + "0000100000000001" + "0000200000000000", "00000003" + "0000300000000001"]
            : ["00000001" + "00000001" + "0000000000003000" + "0000000000000003",
               "00000002" + "00000002" + "0000000000001000" + "0000000000000001" + "0000000000002000" + "0000000000000000",
               "00000003" + "00000001" + "0000000000003000" + "0000000000000001"];
        Assert.Equal(wanted, chunks.Select(c => Convert.ToHexString(c.Data)));
        chunks.Clear();
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 4096, 12288, NbdCommandFlags.RequestOne, null, chunks));
        Assert.All(chunks, c => Assert.Equal(mode == NbdReplyMode.Structured ? 12 : 24, c.Data.Length));
        if (mode != NbdReplyMode.Extended) return;
        chunks.Clear();
        byte[] wish = Join(U64(4096), U32(3));
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 4096, (ulong)wish.Length, 0, wish, chunks));
        Assert.Equal("00000003", Convert.ToHexString(Assert.Single(chunks).Data)[..8]);
        wish = Join(U64(4096), U32(4));
        Assert.Equal(NbdError.Invalid, world.Ask(NbdCommand.BlockStatus, 4096, (ulong)wish.Length, 0, wish));
    }

    [Fact]
    public void What_is_gone_is_one_error_and_no_half_answer()
    {
        var contexts = new Two { IsGone = true };
        NbdWorld world = World(contexts);
        Names(world, NbdOption.SetMetaContext, "base:allocation", "qemu:dirty-bitmap:b");
        world.Option(NbdOption.Go, Text("disk"), U16(0));
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        Assert.NotEqual(NbdError.None, world.Ask(NbdCommand.BlockStatus, 0, 4096, 0, null, chunks));
        Assert.Equal(NbdChunk.Error, Assert.Single(chunks).Type);
    }

    private static NbdWorld World(INbdContexts? contexts = null, NbdReplyMode mode = NbdReplyMode.Structured)
    {
        var world = new NbdWorld { Contexts = contexts ?? new Two() };
        world.Greet();
        world.Mode = mode;
        world.Option(mode == NbdReplyMode.Structured ? NbdOption.StructuredReply : NbdOption.ExtendedHeaders);
        return world;
    }

    private static List<string> Names(NbdWorld world, NbdOption option, params string[] queries)
    {
        List<(NbdReply Type, byte[] Data)> replies = world.Option(option, [Text("disk"), U32((uint)queries.Length), .. queries.Select(Text)]);
        Assert.Equal(NbdReply.Ack, replies[^1].Type);
        return [.. replies[..^1].Select(r => Encoding.UTF8.GetString(r.Data.AsSpan(4)))];
    }

    /// <summary>"a": the first block in front of 8192 is dirty; "b": everything is.</summary>
    private sealed class Two : INbdContexts
    {
        public bool IsGone { get; init; }

        public ValueTask<IReadOnlyList<NbdContext>> ListAsync() => new(
            [new NbdContext("qemu:allocation-depth", null), new NbdContext("qemu:dirty-bitmap:a", 'a'), new NbdContext("qemu:dirty-bitmap:b", 'b')]);

        public ValueTask<IoStatus> MapAsync(NbdContext context, ulong offsetBytes, ulong lengthBytes, int runsMax, List<NbdStatusRun> runs)
        {
            if (IsGone) return new(IoStatus.NotFound);
            ulong dirty = context.Tag is 'a' && offsetBytes < 8192 ? Math.Min(8192 - offsetBytes, lengthBytes) : lengthBytes;
            runs.Add(new NbdStatusRun(dirty, 1));
            if (dirty < lengthBytes && runsMax > 1) runs.Add(new NbdStatusRun(lengthBytes - dirty, 0));
            return new(IoStatus.Ok);
        }
    }

    private sealed class Many(int count) : INbdContexts
    {
        public ValueTask<IReadOnlyList<NbdContext>> ListAsync() => new(
            [new NbdContext("qemu:allocation-depth", null), .. Enumerable.Range(0, count).Select(i => new NbdContext($"qemu:dirty-bitmap:s{i}", i))]);

        public ValueTask<IoStatus> MapAsync(NbdContext context, ulong offsetBytes, ulong lengthBytes, int runsMax, List<NbdStatusRun> runs)
        {
            for (int i = 0; i < runsMax && (ulong)i * 4096 < lengthBytes; i++) runs.Add(new NbdStatusRun(4096, (uint)i % 2));
            return new(IoStatus.Ok);
        }
    }
}
