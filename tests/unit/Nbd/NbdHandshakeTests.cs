using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

public class NbdHandshakeTests
{
    private static readonly byte[] s_go = Join(Text("disk"), U16(0));

    [Fact]
    public void Info_and_go_give_the_same_golden_answers()
    {
        var world = new NbdWorld();
        world.Greet();
        byte[] wish = Join(Text("disk"), U16(2), U16(1), U16(2));
        List<(NbdReply Type, byte[] Data)> info = world.Option(NbdOption.Info, wish);
        List<(NbdReply Type, byte[] Data)> go = world.Option(NbdOption.Go, wish);
        Assert.Equal(info.Select(r => Convert.ToHexString(r.Data)), go.Select(r => Convert.ToHexString(r.Data)));
        Assert.Equal(
            ["000000000000040000000D6D", "0003000000010000100002000000", "00016469736B", "000261206469736B", ""],
            go.Select(r => Convert.ToHexString(r.Data)));
    }

    [Fact]
    public void A_newstyle_client_without_flags_enters_by_name_and_gets_124_zero_bytes()
    {
        var world = new NbdWorld();
        world.Greet(flags: 0);
        world.Send(OptionBytes(NbdOption.ExportName, "disk"u8.ToArray()));
        byte[] answer = world.Receive(10 + 124);
        Assert.Equal("00000000040000000D6D", Convert.ToHexString(answer[..10]));
        Assert.All(answer[10..], b => Assert.Equal(0, b));
        Assert.Equal(new byte[512], world.Read(0, 512));
    }

    [Fact]
    public void No_zeroes_leaves_them_out_and_requests_may_follow_at_once()
    {
        var world = new NbdWorld();
        world.Greet();
        world.Send(OptionBytes(NbdOption.ExportName, "disk"u8.ToArray()), world.RequestBytes(NbdCommand.Read, 77, 0, 512));
        Assert.Equal(10, world.Receive(10).Length);
        Assert.Equal(NbdError.None, world.Answer(77, 512));
    }

    [Fact]
    public void An_unknown_export_by_name_closes()
    {
        var world = new NbdWorld();
        world.Greet();
        world.Send(OptionBytes(NbdOption.ExportName, "nothing"u8.ToArray()));
        Assert.Equal("unknown export", world.End());
        Assert.Empty(world.Receive(1));
    }

    [Fact]
    public void Unknown_client_flags_close()
    {
        var world = new NbdWorld();
        world.Greet(flags: 4);
        Assert.Equal("unknown client flags", world.End());
    }

    [Fact]
    public void Options_without_the_fixed_flag_close()
    {
        var world = new NbdWorld();
        world.Greet(flags: 2);
        world.Send(OptionBytes(NbdOption.List));
        Assert.Equal("options need the FIXED_NEWSTYLE flag", world.End());
    }

    [Fact]
    public void A_wrong_option_magic_closes()
    {
        var world = new NbdWorld();
        world.Greet();
        world.Send(new byte[16]);
        Assert.Equal("wrong option magic", world.End());
    }

    [Fact]
    public void An_option_of_more_than_64_KiB_closes_before_its_data()
    {
        var world = new NbdWorld();
        world.Greet();
        world.Send("IHAVEOPT"u8.ToArray(), U32(7), U32(65537));
        Assert.Equal("an option is too long", world.End());
    }

    [Fact]
    public void Malformed_options_are_refused_and_the_stream_stays_in_step()
    {
        var world = new NbdWorld();
        world.Greet();
        byte[] longName = Text(new string('x', 4097));
        (NbdOption Option, byte[] Data, NbdReply Reply)[] cases =
        [
            ((NbdOption)4711, new byte[5000], NbdReply.ErrUnsup),
            (NbdOption.Go, [], NbdReply.ErrInvalid),
            (NbdOption.Go, [1, 2, 3, 4, 5], NbdReply.ErrInvalid),
            (NbdOption.Go, Join(U32(uint.MaxValue), U16(0)), NbdReply.ErrInvalid),
            (NbdOption.Go, Text("disk"), NbdReply.ErrInvalid),
            (NbdOption.Go, Join(Text("disk"), U16(3), U16(1)), NbdReply.ErrInvalid),
            (NbdOption.Info, Join(longName, U16(0)), NbdReply.ErrTooBig),
            (NbdOption.Info, Join(U32(2), [0xFF, 0xFE], U16(0)), NbdReply.ErrInvalid),
            (NbdOption.Info, Join(Text("a\0b"), U16(0)), NbdReply.ErrInvalid),
            (NbdOption.Info, Join(Text("nothing"), U16(0)), NbdReply.ErrUnknown),
            (NbdOption.List, [1], NbdReply.ErrInvalid),
            (NbdOption.StartTls, [], NbdReply.ErrPolicy),
            (NbdOption.StartTls, [1], NbdReply.ErrInvalid),
            (NbdOption.SetMetaContext, Join(Text("disk"), U32(1), Text("base:allocation")), NbdReply.ErrInvalid),
            (NbdOption.StructuredReply, [9], NbdReply.ErrInvalid),
            (NbdOption.StructuredReply, [], NbdReply.Ack),
            (NbdOption.StructuredReply, [], NbdReply.ErrInvalid),
            (NbdOption.SetMetaContext, [], NbdReply.ErrInvalid),
            (NbdOption.SetMetaContext, Join(Text("disk"), U32(2), Text("base:allocation")), NbdReply.ErrInvalid),
            (NbdOption.SetMetaContext, Join(Text("disk"), U32(1), longName), NbdReply.ErrTooBig),
            (NbdOption.SetMetaContext, Join(Text("nothing"), U32(0)), NbdReply.ErrUnknown),
            (NbdOption.ExtendedHeaders, [], NbdReply.Ack),
            (NbdOption.ExtendedHeaders, [], NbdReply.ErrInvalid),
            (NbdOption.StructuredReply, [], NbdReply.ErrExtHeaderReqd),
            (NbdOption.Abort, [], NbdReply.Ack),
        ];
        foreach ((NbdOption option, byte[] data, NbdReply reply) in cases)
        {
            List<(NbdReply Type, byte[] Data)> replies = world.Option(option, data);
            Assert.Equal((option, reply, 1), (option, replies[^1].Type, replies.Count));
        }

        Assert.Equal("the client aborted", world.End());
    }

    [Fact]
    public void What_is_there_and_cannot_be_attached_now_is_not_said_to_be_missing()
    {
        var world = new NbdWorld { MayUse = _ => false, Reason = "'disk' is being populated" };
        world.Greet();
        (NbdReply type, byte[] data) = world.Option(NbdOption.Go, Join(Text("disk"), U16(0)))[^1];
        Assert.Equal((NbdReply.ErrPolicy, world.Reason), (type, System.Text.Encoding.UTF8.GetString(data)));
        world.Reason = null;
        Assert.Equal(NbdReply.ErrUnknown, world.Option(NbdOption.Go, Join(Text("disk"), U16(0)))[^1].Type);
    }

    [Fact]
    public void More_than_32_options_close()
    {
        var world = new NbdWorld();
        world.Greet();
        for (int i = 0; i < 32; i++) Assert.Equal(2, world.Option(NbdOption.List).Count);
        Assert.Equal("too many options", world.End());
    }

    [Fact]
    public void Ten_seconds_of_silence_close()
    {
        var world = new NbdWorld();
        world.Greet();
        ulong before = world.Loop.NowNanos;
        Assert.Equal("the handshake took too long", world.End());
        Assert.InRange(world.Loop.NowNanos - before, 9_900_000_000UL, 10_100_000_000UL);
    }

    [Fact]
    public void List_shows_names_and_descriptions_or_is_hidden_by_policy()
    {
        var world = new NbdWorld();
        world.Greet();
        Assert.Equal("\0\0\0\u0004diska disk", Encoding.UTF8.GetString(world.Option(NbdOption.List)[0].Data));
        var hidden = new NbdWorld(options: new NbdOptions { AllowList = false });
        hidden.Greet();
        Assert.Equal(NbdReply.ErrPolicy, hidden.Option(NbdOption.List)[0].Type);
    }

    [Fact]
    public void A_failed_or_other_choice_of_contexts_clears_the_earlier_one()
    {
        byte[] good = Join(Text("disk"), U32(1), Text("base:allocation"));
        byte[][] later = [good, Join(Text("disk"), U32(0)), Join(Text("nothing"), U32(0)), Join(Text(""), U32(1), Text("base:allocation")), []];
        for (int i = 0; i < later.Length; i++)
        {
            var world = new NbdWorld { Mode = NbdReplyMode.Structured };
            world.Greet();
            world.Option(NbdOption.StructuredReply);
            Assert.Equal("00000001" + Convert.ToHexString("base:allocation"u8),
                Convert.ToHexString(world.Option(NbdOption.SetMetaContext, good)[0].Data));
            world.Option(NbdOption.SetMetaContext, later[i]);
            world.Option(NbdOption.Go, s_go);
            Assert.Equal(i == 0 ? NbdError.None : NbdError.Invalid, world.Ask(NbdCommand.BlockStatus, 0, 4096));
        }
    }

    [Fact]
    public void Contexts_are_listed_by_none_by_namespace_and_by_name()
    {
        var world = new NbdWorld();
        world.Greet();
        world.Option(NbdOption.StructuredReply);
        Assert.Equal(2, world.Option(NbdOption.ListMetaContext, Text("disk"), U32(0)).Count);
        Assert.Equal(2, world.Option(NbdOption.ListMetaContext, Text("disk"), U32(1), Text("base:")).Count);
        Assert.Single(world.Option(NbdOption.ListMetaContext, Text("disk"), U32(1), Text("qemu:")));
        Assert.Single(world.Option(NbdOption.SetMetaContext, Text("disk"), U32(1), Text("base:")));
    }

    [Fact]
    public void With_TLS_required_nothing_goes_before_it_and_afterwards_all_is_forgotten()
    {
        var world = new NbdWorld(options: new NbdOptions { TlsMode = NbdTlsMode.Required, Tls = new SameTls() });
        world.Greet();
        foreach (NbdOption option in new[] { NbdOption.List, NbdOption.Go, NbdOption.StructuredReply, (NbdOption)99 })
            Assert.Equal(NbdReply.ErrTlsReqd, world.Option(option)[0].Type);
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.StartTls)[0].Type);
        Assert.Equal(NbdReply.ErrInvalid, world.Option(NbdOption.StartTls)[0].Type);
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.Go, s_go)[^1].Type);
        Assert.Equal("CN=client", world.Session.Negotiated?.Identity);
    }

    [Fact]
    public void TLS_forgets_structured_replies_agreed_in_the_clear()
    {
        var world = new NbdWorld(options: new NbdOptions { TlsMode = NbdTlsMode.Optional, Tls = new SameTls() })
            { RequiresTls = true };
        world.Greet();
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.StructuredReply)[0].Type);
        Assert.Equal(NbdReply.ErrTlsReqd, world.Option(NbdOption.Go, s_go)[0].Type);
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.StartTls)[0].Type);
        Assert.Equal(NbdReply.Ack, world.Option(NbdOption.Go, s_go)[^1].Type);
        Assert.Equal(new byte[512], world.Read(0, 512)); // simple replies
    }

    [Fact]
    public void Data_ahead_of_TLS_closes()
    {
        var world = new NbdWorld(options: new NbdOptions { TlsMode = NbdTlsMode.Required, Tls = new SameTls() });
        world.Greet();
        world.Loop.RunUntil(() => false, 50);
        // Byte counts are drawn: only when both options arrive together is there something ahead, so send until they do.
        for (ulong seed = 1; seed < 50; seed++)
        {
            world = new NbdWorld(seed, new NbdOptions { TlsMode = NbdTlsMode.Required, Tls = new SameTls() });
            world.Greet();
            world.Send(OptionBytes(NbdOption.StartTls), OptionBytes(NbdOption.List));
            world.Loop.RunUntil(() => world.HasEnded, 200);
            if (world.HasEnded && world.End() == "data was sent ahead of TLS") return;
        }

        Assert.Fail("never refused");
    }

    [Fact]
    public void A_stopping_server_says_so()
    {
        var world = new NbdWorld();
        world.Greet();
        world.Session.RequestStop();
        Assert.Equal(NbdReply.ErrShutdown, world.Option(NbdOption.Go, s_go)[0].Type);
    }

    private sealed class SameTls : ITlsUpgrade
    {
        public ValueTask<TlsResult> UpgradeAsync(IConnection plain) => new(new TlsResult(plain, "CN=client", null));
    }
}
