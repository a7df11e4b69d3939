//! Golden scripts: a cluster driven by commands, and everything that happens as a transcript.
//!
//! `raft/src/testscripts/README.md` lists the commands. `UPDATE_GOLDENFILES=1 cargo test -p raftkv script` writes the
//! transcripts anew; review the difference as code.

use std::collections::BTreeSet;

use goldenscript::{Command, Context};

use super::arguments::Failure;
use super::commands::{create, execute};
use crate::testing::simulation::consensus::Cluster;

#[derive(Default)]
struct Runner {
    cluster: Option<Cluster>,
    /// What the script runs at the moment, for those who look for a failure.
    current: String,
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Failure> {
        self.current = command.to_string();
        let later = context.tags.contains("later");
        if command.name == "cluster" {
            self.cluster = Some(create(&mut command.consume_args())?);
        } else {
            let cluster = self.cluster.as_mut().ok_or("the script does not begin with 'cluster'")?;
            let outcome = execute(cluster, &command.name, command.consume_args(), later);
            if let Err(reason) = outcome {
                return Err(format!("{reason}\nafter:\n{}", cluster.take_transcript().join("\n")).into());
            }
        }
        let cluster = self.cluster.as_mut().ok_or("there is no cluster")?;
        Ok(cluster.take_transcript().join("\n"))
    }
}

/// Runs one script; a failure names it, the command and what led to it. With `--cfg mutants`, `RAFTKV_MUTANT` names a known bug to
/// switch on: some script should fail then.
fn run(path: &str) {
    if cfg!(mutants) {
        let mutant = std::env::var("RAFTKV_MUTANT").ok();
        crate::mutants::choose(mutant.as_deref()).expect("a known bug");
    }
    let mut runner = Runner::default();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts").join(path);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| goldenscript::run(&mut runner, &path)));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{}: {error}", path.display()),
        Err(panic) => {
            let trace = runner.cluster.as_mut().map(Cluster::take_transcript).unwrap_or_default();
            eprintln!("{}: panic in or after '{}'\n{}", path.display(), runner.current, trace.join("\n"));
            std::panic::resume_unwind(panic)
        }
    }
}

/// One test a script: the list says which there are, and a test that none is missing.
macro_rules! scripts {
    ($($topic:ident { $($name:ident,)+ })+) => {
        $(mod $topic { $(
            #[test]
            fn $name() {
                super::run(concat!(stringify!($topic), "/", stringify!($name), ".txt"));
            }
        )+ })+

        #[test]
        fn every_script_is_a_test() {
            let listed: BTreeSet<String> =
                [$($(concat!(stringify!($topic), "/", stringify!($name), ".txt")),+),+].map(String::from).into();
            assert_eq!(listed, found(), "list every script in script.rs");
        }
    };
}

/// The scripts on disk.
fn found() -> BTreeSet<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts");
    let mut found = BTreeSet::new();
    for topic in std::fs::read_dir(&root).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        for script in std::fs::read_dir(topic.path()).unwrap().map(Result::unwrap) {
            found.insert(format!("{}/{}", topic.file_name().display(), script.file_name().display()));
        }
    }
    found
}

#[test]
fn every_script_opens_with_what_it_shows() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts");
    for script in found() {
        let text = std::fs::read_to_string(root.join(&script)).unwrap();
        assert!(text.starts_with("# "), "{script} has no opening comment");
    }
}

scripts! {
    bootstrap {
        a_cluster_is_started_on_one_node,
        a_cluster_may_be_started_on_every_node,
        a_node_that_has_a_log_is_not_started_again,
        a_node_that_has_voted_may_still_be_told_the_start,
        a_repeated_start_changes_nothing,
        a_start_is_answered_once_it_is_on_disk,
        a_start_of_other_members_is_refused,
        a_start_that_makes_no_sense_is_refused,
        two_starts_at_once_on_one_node,
    }
    commit {
        a_commit_index_never_goes_back,
        a_commit_travels_with_the_next_append,
        a_follower_applies_only_what_is_on_its_disk,
        a_leader_counts_itself_only_when_its_disk_is_done,
        a_majority_is_counted_by_value,
        a_minority_commits_nothing,
        an_acknowledgement_of_another_term_counts_nothing,
        figure_8_c_an_entry_of_an_earlier_term_is_not_committed_by_counting,
        figure_8_e_an_entry_of_the_own_term_commits_all_before_it,
        followers_commit_without_the_leaders_disk,
        what_waits_for_the_state_machine_is_bounded,
    }
    durability {
        a_candidate_forgotten_by_a_crash_is_free_again,
        a_candidate_that_gave_way_asks_for_no_votes,
        a_candidates_vote_for_itself_waits_for_the_disk,
        a_candidates_vote_survives_a_crash,
        a_follower_in_a_new_term_acknowledges_nothing_before_the_term_is_on_disk,
        a_leader_whose_disk_stalls_gives_way,
        a_node_without_a_log_remembers_its_vote,
        a_single_voter_answers_after_its_disk,
        a_torn_write_leaves_a_prefix,
        a_vote_on_disk_survives_a_crash,
        a_vote_waits_for_the_disk,
        a_write_that_was_overtaken_by_a_truncation_proves_nothing,
        an_acknowledgement_waits_for_the_disk,
        one_write_at_a_time_carries_all_that_waits,
        promises_of_an_earlier_term_are_dropped,
        reads_do_not_keep_a_stalled_leader_in_office,
        writes_are_bounded_and_one_oversize_entry_passes_alone,
    }
    election {
        a_candidate_gives_way_to_the_leader_of_its_term,
        a_duplicated_vote_counts_once,
        a_higher_term_is_no_vote,
        a_late_vote_changes_nothing,
        a_late_vote_may_elect_the_leader_of_a_term_that_is_over,
        a_leader_is_elected,
        a_leader_steps_down_before_a_higher_term,
        a_leader_without_a_quorum_steps_down_and_keeps_its_vote,
        a_log_is_compared_by_term_before_index,
        a_message_of_an_earlier_term_is_refused,
        a_minority_elects_nobody,
        a_new_leader_has_what_was_committed,
        a_node_without_a_configuration_waits,
        a_second_leader_of_a_term_is_a_violation,
        a_single_voter_elects_itself_and_restarts,
        a_split_vote_is_resolved_by_other_timeouts,
        a_vote_is_given_once_a_term,
        an_empty_log_after_a_snapshot_counts_with_the_snapshots_term,
        lost_requests_are_followed_by_another_election,
        timeouts_are_drawn_from_once_to_twice_the_configured_time,
        two_voters_need_each_other,
        votes_of_strangers_do_not_count,
    }
    failover {
        a_dead_leader_is_missed_when_it_should_have_spoken,
        a_hint_at_one_node_is_not_enough,
        a_hint_does_not_disturb_a_live_leader,
        a_hint_of_another_node_means_nothing,
        a_late_hint_is_cancelled_by_the_next_word,
        a_leader_hurries_for_the_peer_that_was_lost,
        a_leader_is_heard_again_whenever_its_connections_broke,
        a_leader_that_connects_again_is_heard_before_anybody_polls,
        a_leader_that_restarts_faster_than_the_hint,
        a_leader_whose_process_died_is_replaced_at_once,
        a_node_that_suspects_its_leader_grants_polls_and_votes,
        a_partitioned_leader_is_missed_within_the_election_timeout,
        a_peer_that_is_down_does_not_hurry_its_leader,
        voters_of_both_halves_take_turns,
        voters_take_turns_by_their_ids,
    }
    forward {
        a_batch_is_appended_whole_and_in_order,
        a_batch_larger_than_the_limit_passes_alone,
        a_batch_refused_to_a_stranger_is_never_taken,
        a_batch_that_was_taken_is_not_refused_once_its_sender_left,
        a_batch_whose_leader_is_lost_has_an_unknown_outcome,
        a_command_at_a_follower_is_answered_from_its_own_state,
        a_leader_at_its_limit_refuses,
        a_leader_whose_backlog_is_old_refuses,
        a_poll_in_the_same_term_gives_nothing_up,
        a_repeated_batch_is_not_refused_by_its_former_leader,
        a_repeated_batch_is_proposed_once,
        an_entry_beyond_the_end_of_a_later_terms_log_is_lost,
        an_entry_that_is_overwritten_is_lost,
        nothing_is_passed_on_to_a_leader_that_is_suspected,
        only_members_may_pass_on_commands,
        the_answer_may_come_after_the_entry,
        unanswered_batches_are_bounded,
        without_a_leader_nothing_is_proposed,
    }
    membership {
        a_candidate_needs_both_halves,
        a_change_is_made_only_where_it_was_meant,
        a_change_that_makes_no_sense_is_refused,
        a_change_whose_leader_is_lost_has_an_unknown_outcome,
        a_configuration_is_taken_back_after_a_restart_as_well,
        a_configuration_may_be_completed_by_another_leader,
        a_follower_passes_a_change_on,
        a_joint_configuration_commits_in_both_halves,
        a_leader_falls_before_the_joint_configuration_left_it,
        a_leader_that_steps_down_says_what_it_can,
        a_learner_gets_the_log_and_counts_for_nothing,
        a_new_address_is_taken_over,
        a_new_leader_ends_a_joint_configuration,
        a_new_voter_catches_up_in_rounds,
        a_new_voter_first_catches_up_as_a_learner,
        a_node_is_removed_while_the_leader_is_cut_off,
        a_node_is_replaced_in_one_call,
        a_node_may_be_needed_after_it_was_removed,
        a_node_that_does_not_catch_up_stays_a_learner,
        a_promoted_learner_votes_before_it_knows,
        a_removed_follower_learns_it,
        a_removed_leader_leads_until_it_is_committed,
        a_removed_node_that_was_not_told_disturbs_nobody,
        a_repeated_change_is_made_once,
        a_single_voter_becomes_three_and_one_again,
        a_voter_is_demoted,
        no_change_before_an_entry_of_the_own_term_is_committed,
        one_change_at_a_time,
        reads_need_both_halves,
        too_few_voters_that_can_be_reached,
        voters_are_replaced_jointly,
    }
    preference {
        a_break_begins_the_wait_anew,
        a_candidate_that_is_kept_from_leading_gives_up,
        a_change_of_the_configuration_is_not_interrupted,
        a_leader_that_is_kept_from_leading_hands_over,
        a_leader_with_nobody_to_hand_over_to_goes_on,
        a_node_that_is_kept_from_leading_does_not_campaign,
        a_stalled_disk_does_not_take_over,
        a_successor_that_would_not_lead_says_so,
        a_transfer_that_failed_is_not_tried_again_soon,
        equal_priorities_leave_leadership_where_it_is,
        leadership_goes_to_the_highest_priority,
        the_highest_priority_of_those_that_keep_up_is_chosen,
    }
    prevote {
        a_follower_that_catches_up_does_not_campaign,
        a_late_answer_to_a_poll_changes_nothing,
        a_live_leader_is_not_disturbed_by_a_campaign,
        a_live_leader_is_not_disturbed_by_a_poll,
        a_lost_leader_is_replaced_within_two_timeouts,
        a_node_that_does_not_poll_answers_polls_by_the_rules,
        a_poll_is_refused_to_a_stale_log,
        a_poll_raises_no_term,
        a_pre_candidate_forgets_its_former_leader,
        a_pre_candidate_that_hears_the_leader_follows_it_again,
        a_repeated_answer_to_a_poll_counts_once,
        a_stuck_candidate_with_a_higher_term_is_freed,
        an_operators_campaign_does_not_disturb_a_live_leader,
    }
    reads {
        a_cut_off_leader_serves_no_read,
        a_follower_asks_the_leader,
        a_followers_reads_are_refused_when_its_leader_is_lost,
        a_lease_answers_reads_without_a_round,
        a_lease_counts_from_when_it_was_asked_for,
        a_lease_ends_before_a_successor_is_told,
        a_lease_ends_without_a_quorum,
        a_lease_is_shorter_by_what_clocks_may_gain,
        a_lease_needs_promises_of_both_halves,
        a_lost_question_for_a_lease_is_asked_again,
        a_lost_question_is_asked_again,
        a_lost_round_is_repeated_by_the_next_heartbeat,
        a_node_that_leads_no_more_answers_no_index,
        a_promise_keeps_a_node_out_of_elections,
        a_promise_outlives_a_lost_connection,
        a_read_is_confirmed_by_a_round_of_heartbeats,
        a_read_without_a_leader_is_refused,
        a_repeated_answer_counts_once,
        a_restarted_node_reads_only_what_it_has_applied_again,
        a_restarted_voter_stays_out_of_elections,
        a_single_voter_reads_at_once,
        an_answer_to_an_earlier_round_confirms_nothing,
        an_answer_to_an_earlier_terms_heartbeat_confirms_nothing,
        an_answer_with_an_index_is_for_its_question_only,
        each_node_says_itself_what_it_promises,
        many_reads_share_a_round,
        no_lease_before_an_entry_of_the_own_term_is_committed,
        no_read_before_an_entry_of_the_own_term_is_committed,
        reads_are_refused_when_the_leader_steps_down,
        reads_that_wait_at_the_leader_are_bounded,
        unanswered_questions_for_an_index_are_bounded,
    }
    recovery {
        a_cut_off_leaders_entries_are_lost_and_said_to_be,
        a_follower_that_hears_nothing_does_no_harm,
        a_follower_that_is_not_heard_does_no_harm,
        a_machine_that_kept_its_state_is_not_given_it_again,
        a_paused_leader_comes_back,
        a_restart_applies_in_bounded_pieces,
        a_whole_cluster_loses_power,
        an_acknowledged_write_survives_its_leader,
        an_idle_cluster_says_little,
        one_way_links_do_not_stop_the_others,
        power_is_lost_again_during_recovery,
    }
    replication {
        a_command_reaches_all_and_is_applied_everywhere,
        a_commit_index_beyond_what_matches_is_not_believed,
        a_conflict_with_a_committed_entry_is_refused,
        a_crashed_leaders_unsent_entries_are_overwritten,
        a_dead_follower_costs_nothing,
        a_follower_that_diverged_by_terms_needs_a_round_trip_for_each,
        a_full_window_is_reopened_by_a_heartbeat,
        a_heartbeat_tells_only_what_the_follower_has,
        a_late_rejection_is_ignored,
        a_lost_append_is_sent_again,
        a_page_of_conflicts_converges,
        a_probe_whose_answer_was_lost_ends_with_a_heartbeat,
        a_read_for_a_follower_outlives_a_term,
        a_repeated_append_changes_nothing,
        a_restarted_follower_gets_what_it_missed,
        a_slow_disk_at_a_follower_is_no_lost_append,
        appends_are_bounded_and_one_oversize_entry_passes_alone,
        appends_are_sent_ahead_of_their_answers,
        appends_out_of_order_converge,
        appends_that_no_leader_sends_are_refused,
        entries_older_than_the_memory_are_read_from_disk,
        figure_7_a,
        figure_7_b,
        figure_7_c,
        figure_7_d,
        figure_7_e,
        figure_7_f,
        heartbeats_go_on_while_a_large_append_is_on_its_way,
        many_commands_travel_in_one_append,
        only_a_proven_conflict_truncates,
        the_window_is_bounded_in_bytes,
    }
    sessions {
        a_leader_notes_for_how_long_it_leads,
        a_new_leader_counts_from_its_own_election,
        what_a_session_asks_for_is_passed_on_as_such,
        what_is_held_back_for_a_session_is_appended_as_such,
    }
    snapshot {
        a_configuration_that_was_cut_off_stays_in_force,
        a_cut_off_log_keeps_its_terms,
        a_cut_reaches_the_disk_before_the_next_write,
        a_damaged_image_is_dropped_and_received_again,
        a_damaged_part_is_dropped,
        a_fetch_of_nothing_is_answered,
        a_follower_that_is_a_little_behind_needs_no_image,
        a_follower_that_lags_far_gets_an_image,
        a_learner_gets_an_image,
        a_leader_commits_what_an_image_proves,
        a_leader_without_an_image_takes_one_for_who_needs_it,
        a_member_that_asks_for_the_same_parts_gets_no_more_time,
        a_member_that_comes_on_with_an_image_gets_more_time,
        a_part_that_does_not_fit_is_refused,
        a_receiver_that_crashes_goes_on_where_it_was,
        a_removed_node_learns_it_from_an_image,
        a_slow_link_is_given_more_time,
        a_slow_receiver_is_waited_for,
        an_image_is_taken_after_so_many_bytes,
        an_image_is_taken_after_so_many_entries,
        an_image_is_taken_on_request,
        an_image_that_appends_have_overtaken_is_left_off,
        an_image_that_appends_have_overtaken_is_not_installed,
        an_image_that_came_to_nothing_is_tried_again,
        an_image_that_is_being_written_is_lost_with_the_power,
        an_image_that_is_gone_gives_way_to_the_next,
        an_image_waits_for_the_term_on_disk,
        an_install_keeps_what_was_acknowledged_after_it,
        an_install_overtakes_what_is_read_for_the_state_machine,
        an_install_overtakes_what_waits_to_be_applied,
        an_installed_image_brings_its_configuration,
        an_offer_of_what_is_committed_is_ignored,
        an_offer_that_no_leader_makes_is_refused,
        another_image_is_put_off_while_one_is_fetched,
        lost_parts_are_asked_for_again,
        of_two_images_of_one_entry_the_later_is_offered,
        one_image_is_taken_at_a_time,
        power_is_lost_before_an_image_is_published,
        power_is_lost_before_the_log_is_cut,
        power_is_lost_between_an_image_and_its_cut,
        reads_and_writes_that_wait_learn_from_an_image,
        the_leader_changes_in_the_middle,
        the_rate_is_kept,
        the_window_bounds_what_is_asked_for,
    }
    stall {
        a_leader_whose_state_machine_stalls_hands_over,
        a_leader_with_a_stalled_state_machine_and_no_successor_steps_down,
        a_long_restore_that_gets_on_is_not_stalled,
        a_slow_state_machine_is_not_stalled,
        a_stalled_node_does_not_campaign_until_it_has_recovered,
    }
    transfer {
        a_claim_is_honoured_only_by_what_it_says,
        a_follower_learns_from_its_former_leader_what_became_of_its_command,
        a_former_leader_that_forgot_decides_nothing,
        a_late_word_still_counts_in_its_term,
        a_leader_that_crashes_while_it_hands_over,
        a_learner_does_not_campaign,
        a_partition_while_leadership_is_handed_over,
        a_repeated_batch_is_not_given_back_by_the_leader_that_took_it,
        a_successor_learns_from_its_former_leader_what_became_of_its_command,
        a_successor_that_crashes,
        a_transfer_in_vain_is_given_up,
        a_transfer_that_makes_no_sense_is_refused,
        a_word_of_an_earlier_term_is_ignored,
        another_election_while_leadership_is_handed_over,
        commands_are_held_back_and_go_to_the_new_leader,
        held_commands_are_bounded,
        leadership_is_handed_to_a_voter,
        only_the_first_campaign_says_so,
        reads_go_on_and_move,
        the_most_up_to_date_voter_is_chosen,
        the_successor_is_brought_up_to_date_first,
        the_word_is_repeated_until_it_is_heard,
    }
}
